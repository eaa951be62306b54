"""Downloads a TFDS image set and writes it as array_record: `python -m lasa_jax.data.prepare mnist --data_dir=DIR`.

Preparing from the original download is the only step that needs TensorFlow: `pip install -e ".[prepare]"`.
"""

import argparse
import sys

from lasa_jax.data import tfds_images
from lasa_jax.errors import InputError


def prepare(name: str, data_dir: str | None) -> None:
    """Prepares one set.

    Raises:
      InputError: if TensorFlow is missing, or the download or the writing fails.
    """
    root, _ = tfds_images.resolve_data_dir(data_dir)
    try:
        import tensorflow  # noqa: F401
    except ImportError as error:
        raise InputError(f'preparing {name} needs {error.name}: pip install -e ".[prepare]"') from None
    import tensorflow_datasets as tfds

    try:
        tfds.builder(name, data_dir=root, file_format="array_record").download_and_prepare()
    except (OSError, ValueError, tfds.download.DownloadError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"preparing {name} in {root} failed: {type(error).__name__}: {reason}") from error
    tfds_images.find_prepared(name, data_dir)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(tfds_images.LOADERS))
    parser.add_argument("--data_dir", help="default: TFDS_DATA_DIR, then ~/tensorflow_datasets")
    args = parser.parse_args(argv)
    try:
        prepare(args.name, args.data_dir)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.name}: ready in {tfds_images.resolve_data_dir(args.data_dir)[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
