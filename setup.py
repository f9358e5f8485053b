"""Packages of the distribution; everything else is in pyproject.toml.

conf/ lies beside src/ in a checkout, and is installed as src/conf, where the commands look next.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["src", "src.*"]), "src.conf"],
    package_dir={"src.conf": "conf"},
    package_data={
        "src.benchmarks": ["tables/*"],
        "src.conf": ["**/*.yaml"],
        "src.fast.kernels": ["*.cpp", "*.h"],
        "src.reports": ["*.jinja", "*.css", "*.js"],
    },
)
