"""Build: carries `weights_manifest.json` from the top of the repository into the wheel, beside `zoo/manifest.py`."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

MANIFEST = "weights_manifest.json"


class BuildWithManifest(build_py):
    """The usual build, and the manifest. An editable install reads it where it is."""

    def run(self) -> None:
        """Copy the manifest after the modules."""
        super().run()
        if not self.editable_mode:
            self.copy_file(MANIFEST, str(Path(self.build_lib) / "zoo" / MANIFEST))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """List the manifest among what is installed."""
        outputs = super().get_outputs(include_bytecode)
        return outputs if self.editable_mode else [*outputs, str(Path(self.build_lib) / "zoo" / MANIFEST)]

    def get_source_files(self) -> list[str]:
        """List the manifest among what a source distribution carries."""
        return [*super().get_source_files(), MANIFEST]


setup(cmdclass={"build_py": BuildWithManifest})
