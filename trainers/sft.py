"""
The outer SFT that a run with --separate_sft waits for, by processes of its own, which may shard the model.

    accelerate launch --config_file trainers/configs/accelerate/fsdp2.yaml -m trainers.sft outputs/seal

The run's own command goes on afterwards. Model and settings are the run's; see docs/scaling.md.
"""

import argparse
import logging
import os
import sys

from transformers.utils import logging as transformers_logging

from seal_hf.outer_loop.separate_sft import fit_waiting
from seal_hf.rollout.processes import ProcessEnded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", help="The run's folder, which all processes see.")
    output_dir = parser.parse_args().output_dir
    logging.getLogger("seal_hf").addHandler(logging.StreamHandler())
    logging.getLogger("seal_hf").setLevel(logging.INFO)
    transformers_logging.disable_progress_bar()
    try:
        fitted = fit_waiting(output_dir)
    except (ValueError, OSError, ImportError, ProcessEnded) as error:
        sys.exit("\n".join([f"error: {error}", *getattr(error, "__notes__", [])]))
    if int(os.environ.get("RANK", 0)) == 0:
        done = "waits for no SFT" if fitted is None else f"has the policy of round {fitted + 1}"
        print(f"{output_dir} {done}.")


if __name__ == "__main__":
    main()
