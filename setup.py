"""Packaging: one distribution, the packages ``drowsy`` and ``drowsy_kernels``."""

from pathlib import Path
from runpy import run_path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
DISTRIBUTION = run_path(str(HERE / "drowsy" / "_distribution.py"))

MODELS = ["safetensors>=0.4"]
DATA = ["pillow>=10"]
PLOT = ["matplotlib>=3.8"]
SEARCH = ["tqdm>=4.66", "optuna>=4"]
RAY = ["ray>=2.40"]
VIDEO = ["av>=14", *DATA]
LIVE = ["nicegui>=3.18,<4", *DATA]
ENERGY = ["nvidia-ml-py>=12.535"]
METRICS = ["prometheus-client>=0.20"]
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.6,<10", "mkdocstrings[python]>=1,<2"]
# From 70.1 on it makes wheels by itself.
BUILD = ["setuptools>=70.1"]
STUDY = [*MODELS, *DATA, *PLOT, *SEARCH]

setup(
    name=DISTRIBUTION["NAME"],
    version=DISTRIBUTION["VERSION"],
    description="A power-accuracy knob for pretrained CNNs that turns while they run",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    # "kernels" is another project's package: our folder of that name only holds one, and is none.
    package_dir={"drowsy": "drowsy", "drowsy_kernels": "kernels/drowsy_kernels"},
    packages=[*find_packages(include=["drowsy", "drowsy.*"]), *find_packages("kernels")],
    package_data={"": ["py.typed", "*.json", "weights/*", "tuned/*"]},
    install_requires=["torch>=2.9", "triton>=3.6; platform_system=='Linux'", "numpy>=1.26"],
    extras_require={
        "models": MODELS,
        "data": DATA,
        "plot": PLOT,
        "search": SEARCH,
        "ray": RAY,
        "video": VIDEO,
        "live": LIVE,
        "energy": ENERGY,
        "metrics": METRICS,
        "study": STUDY,
        "docs": DOCS,
        "test": [
            *STUDY,
            *ENERGY,
            *METRICS,
            *RAY,
            *VIDEO,
            *LIVE,
            *DOCS,
            *BUILD,
            "pytest>=8",
            "pytest-benchmark>=5",
            "pytest-xdist>=3.5",
            "playwright>=1.50",
            "ruff==0.17.6",
            "mypy==2.4.1",
        ],
    },
    entry_points={"console_scripts": ["drowsy = drowsy.cli:main"]},
)
