"""scripts/test.sh and scripts/quickstart.sh: what they install and check before they build, on one system and another."""

import json
import re
import shutil
import stat
import subprocess
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD_FAILS = 9  # the scripts are followed as far as the build


class FreshClone(unittest.TestCase):
    """A clone on a system of its own: apt, cmake and clang-format are stand-ins that write down their words."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.clone = Path(folder.name) / "clone"
        self.programs = Path(folder.name) / "bin"
        self.programs.mkdir()
        (self.clone / "scripts").mkdir(parents=True)
        for script in ("test.sh", "quickstart.sh", "dependencies.sh"):
            shutil.copy(ROOT / "scripts" / script, self.clone / "scripts")
        self.installed = self.programs / "installed"
        self.program("id", "echo 0")
        self.program("dpkg-query", f'for p; do :; done; grep -qx "$p" {self.installed} && echo install ok installed')
        self.program("cmake", f"exit {BUILD_FAILS}")
        self.program("git", "echo src/a.cpp")
        self.program("python3", "true")
        self.system({}, [])

    def program(self, name, body):
        path = self.programs / name
        path.write_text(f'#!/bin/sh\necho "$@" >> {self.programs}/{name}.words\n{body}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def system(self, formatters, packages):
        """formatters: version by the name of the program; packages: those of clang-format that apt has."""
        for name in ("clang-format-14", "clang-format"):
            version = formatters.get(name)
            self.program(name, f"echo 'Debian clang-format version {version}'" if version else "exit 127")
        (self.programs / "known").write_text("\n".join(packages) + "\n")
        self.program("apt-cache", f'grep -qx "$2" {self.programs}/known')
        # What is installed can be run from then on.
        program = f"{self.programs}/clang-format-14"
        self.program("apt-get", f'''case "$*" in
          *clang-format*) grep -qx clang-format-14 {self.programs}/known || exit 100
            printf "#!/bin/sh\\necho \\"\\$@\\" >> {program}.words\\necho version 14.0.6\\n" > {program} ;;
        esac
        for p; do echo "$p" >> {self.installed}; done''')
        self.installed.write_text("")

    def words(self, name):
        path = self.programs / f"{name}.words"
        return path.read_text() if path.exists() else ""

    def run_script(self, name):
        environment = {"PATH": f"{self.programs}:/usr/bin:/bin"}
        return subprocess.run(["bash", str(self.clone / "scripts" / name)], env=environment, capture_output=True,
                              text=True, check=False)

    def test_formatting_is_checked_by_version_14_under_either_name(self):
        for name in ("clang-format-14", "clang-format"):
            with self.subTest(name=name):
                self.system({"clang-format": "18.1.8", name: "14.0.6"}, [])
                outcome = self.run_script("test.sh")
                self.assertEqual(outcome.returncode, BUILD_FAILS, outcome.stderr)
                self.assertIn("--dry-run -Werror src/a.cpp", self.words(name))
                self.assertNotIn("skipped", outcome.stdout)
                self.assertNotIn("clang-format", self.words("apt-get"))

    def test_version_14_is_installed_where_apt_has_it(self):
        self.system({"clang-format": "18.1.8"}, ["clang-format-14"])
        outcome = self.run_script("test.sh")
        self.assertEqual(outcome.returncode, BUILD_FAILS, outcome.stderr)
        self.assertIn("--dry-run -Werror src/a.cpp", self.words("clang-format-14"))

    def test_without_version_14_formatting_is_skipped_and_the_build_begins(self):
        for formatters in ({}, {"clang-format": "19.1.7"}):
            with self.subTest(formatters=formatters):
                self.system(formatters, ["clang-format"])
                outcome = self.run_script("test.sh")
                self.assertEqual(outcome.returncode, BUILD_FAILS, outcome.stderr)
                self.assertIn("skipped: there is no clang-format 14", outcome.stdout)
                self.assertNotIn("dry-run", self.words("clang-format"))
                self.assertNotIn("clang-format", self.words("apt-get"))

    def test_sources_that_are_laid_out_otherwise_end_it(self):
        self.system({}, [])
        self.program("clang-format", 'case "$1" in --version) echo version 14.0.6 ;; *) exit 1 ;; esac')
        self.assertEqual(self.run_script("test.sh").returncode, 123)  # xargs'
        self.assertEqual(self.words("cmake"), "")

    def test_a_folder_is_built_by_the_same_generator_with_and_without_the_scripts(self):
        presets = json.loads((ROOT / "CMakePresets.json").read_text())["configurePresets"]
        self.assertEqual({preset["generator"] for preset in presets if "inherits" not in preset}, {"Ninja"})
        self.assertEqual({preset["generator"] for preset in presets if "generator" in preset}, {"Ninja"})
        for script, preset in (("test.sh", "release"), ("quickstart.sh", "quickstart")):
            self.run_script(script)
            words = self.words("cmake").splitlines()[-1].split()
            self.assertEqual(words[:2], ["--preset", preset])
            self.assertNotIn("-G", words)
        deep = (ROOT / "scripts" / "test_deep.sh").read_text()
        self.assertEqual([line for line in deep.splitlines() if "-G" in line.split() and "--preset" in line], [])
        self.assertNotIn("-G", re.search(r"strict=\((.*)\)", deep)[1])

    def test_quickstart_installs_what_the_build_with_tests_needs(self):
        outcome = self.run_script("test.sh")
        self.assertEqual(outcome.returncode, BUILD_FAILS, outcome.stderr)
        for_tests = set(self.installed.read_text().split())
        self.installed.write_text("")
        outcome = self.run_script("quickstart.sh")
        self.assertEqual(outcome.returncode, BUILD_FAILS, outcome.stderr)
        self.assertIn("libgtest-dev", for_tests)
        self.assertEqual(for_tests - set(self.installed.read_text().split()), set())


if __name__ == "__main__":
    unittest.main()
