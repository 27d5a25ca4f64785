"""Packaging: two packages from two folders, ``drowsy`` and ``kernels`` (as ``drowsy_kernels``)."""

from pathlib import Path

from setuptools import find_packages, setup

MODELS = ["safetensors>=0.4"]
DATA = ["pillow>=10"]
PLOT = ["matplotlib>=3.8"]
SEARCH = ["tqdm>=4.66", "optuna>=4"]
RAY = ["ray>=2.40"]
ENERGY = ["nvidia-ml-py>=12.535"]
STUDY = [*MODELS, *DATA, *PLOT, *SEARCH]

setup(
    name="drowsy",
    version="0.1.0",
    description="A power-accuracy knob for pretrained CNNs that turns while they run",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    # "kernels" is another project's name on PyPI, so the folder is mapped to one of our own.
    package_dir={"drowsy": "drowsy", "drowsy_kernels": "kernels"},
    packages=[*find_packages(include=["drowsy", "drowsy.*"]), "drowsy_kernels"],
    package_data={
        "drowsy": ["py.typed"],
        "drowsy.backends.cpu": ["crossover.json"],
        "drowsy.models": ["weights/*"],
        "drowsy_kernels": ["tuned/*"],
    },
    install_requires=["torch>=2.9", "triton>=3.6; platform_system=='Linux'", "numpy>=1.26"],
    extras_require={
        "models": MODELS,
        "data": DATA,
        "plot": PLOT,
        "search": SEARCH,
        "ray": RAY,
        "energy": ENERGY,
        "study": STUDY,
        "test": [
            *STUDY,
            *ENERGY,
            *RAY,
            "pytest>=8",
            "pytest-benchmark>=5",
            "pytest-xdist>=3.5",
            "ruff==0.17.6",
            "mypy==2.4.1",
        ],
    },
    entry_points={"console_scripts": ["drowsy = drowsy.cli:main"]},
)
