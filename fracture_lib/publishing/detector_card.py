"""The card of the fracture detector, and its tables."""

from fracture_lib.io.views import DETECTOR_SIZE, OVERSAMPLING
from fracture_lib.labels import CLASSES
from fracture_lib.models.report import DetectorReport, Localization, OutcomeRates
from fracture_lib.publishing.markdown import markdown_table, share
from fracture_lib.registry import DETECTOR, model_title

__all__ = ["outcomes_table", "render_detector_card"]

EXTERNAL_TOTAL = "all"  # the key in `DetectorReport.external` of all its images

METRICS = {
    "auroc": "AUROC",
    "average_precision": "Average precision",
    "sensitivity_at_90_specificity": "Sensitivity at 90 % specificity",
    "specificity_at_95_sensitivity": "Specificity at 95 % sensitivity",
    "expected_calibration_error": "Expected calibration error",
    "brier": "Brier score",
    "negative_log_likelihood": "Negative log-likelihood",
}

CARD = """---
{{ card_data }}
---

# {{ title }} ({{ name }})

**Not a medical device.** Not for diagnosis, triage or any decision about a person. It misses fractures, and it sees
some where there are none.

It estimates whether a fracture is visible in a radiograph of a limb, and where: an EfficientNet-Lite0 on
{{ size }}x{{ size }} pixels with three outcomes.

- **Fracture visible**: a calibrated probability of at least {{ share(report.thresholds.visible) }}.
- **Uncertain**: in between.
- **No fracture seen**: a probability below {{ share(report.thresholds.none) }}. Out of fold, this happens to
  {{ report.missed.percent() }} of the radiographs with a fracture.

## Intended use

Teaching and demonstration, beside the classifiers of fracture types, which assume a fracture.

Out of scope: clinical use of any kind; ruling out a fracture; the spine, ribs, skull and other parts that the
training data lack; images other than radiographs.

## Results

| metric | value (95 % interval) |
| --- | --- |
{%- for key, title in metrics.items() %}
| {{ title }} | {{ report.metrics[key].plain() }} |
{%- endfor %}

n = {{ report.n }} radiographs in {{ report.n_groups }} groups, {{ report.n_fractured }} of them with a fracture;
{{ report.protocol }}. Groups join radiographs that may show one patient, so none is on both sides of a split.
Accuracies of 96 % on these data come from random splits, which have near-duplicates on both sides.

{{ outcomes_table }}

## Another source

{% if other -%}
The {{ other.n }} radiographs of Bone Break Classification come from the web, all show a fracture, and none was trained on.
The detector sees a fracture in {{ share(other.visible) }} of them (FracAtlas, out of fold: {{ share(own.visible) }}) and
none in {{ share(other.none) }} ({{ share(own.none) }}), so it misses {{ "more" if other.none > own.none else "fewer" }} fractures there. Its thresholds
were chosen on FracAtlas; expect other shares on any other source.

{{ external_table }}
{%- else -%}
No other source was measured.
{%- endif %}

## Heatmap

Each place of the 16x16 map has the logit of a fracture. Against the boxes that radiologists drew: "pointing" is the
share of radiographs whose hottest place lies in a box or at most a 32nd of the image from one, "inside" the mean share
of the heat in the boxes. The center of the image and a random place are what a map has to beat. The other rows are
the class activation maps of the classifiers, for their most probable type.

{{ localization_table }}

## Training data

FracAtlas (Abedeen et al., 2023; CC BY 4.0): radiographs of hands, legs, hips and shoulders from three hospitals in
one country, labelled by radiologists. Training started from weights of EfficientNet-Lite0 pretrained on ImageNet
(Apache-2.0).
{%- if report.data %} The dataset's fingerprint is `{{ report.data.fingerprint }}`.
{%- endif %}

## Limitations

- A fracture may be a few pixels wide, or invisible, at {{ size }}x{{ size }} pixels.
- It knows one radiograph and nothing about the patient. Casts, implants and growth plates may mislead it.
- Its probabilities are calibrated for data in which {{ share(report.n_fractured / report.n) }} of the radiographs show a
  fracture. Elsewhere they are off.
- How often it sees a fracture in healthy bones from other sources was not measured.

## Usage

With this library, which reads DICOM, 16-bit PNG and TIFF, JPEG, BMP, WebP and GIF:

```python
import fracture_lib

result = fracture_lib.compare("xray.png")
if result.fracture:  # None for an image that does not look like a radiograph
    print(f"{result.fracture.probability:.0%}", result.fracture.message)
```

With ONNX Runtime alone, for JPEG, 8-bit PNG and greyscale 16-bit PNG files without transparency or wide borders:

```python
import numpy as np
import onnxruntime
{%- if repo %}
from huggingface_hub import hf_hub_download
{%- endif %}
from PIL import Image, ImageOps

image = ImageOps.exif_transpose(Image.open("xray.png"))
image = np.float32(image if image.mode.startswith("I") else image.convert("L"))  # "I": 16 bits
image = Image.fromarray((image - image.min()) / max(np.ptp(image), 1))
longer = max(image.size)
if longer > {{ shrunk }}:
    sides = [max(1, round({{ shrunk }} / longer * side)) for side in image.size]
    image, longer = image.resize(sides, Image.Resampling.BILINEAR), {{ shrunk }}
scale = {{ size }} / longer
(left, right), (top, bottom) = (
    (round(scale * (longer - side) / 2), round(scale * (longer + side) / 2)) for side in image.size
)
pixels = np.zeros((1, 1, {{ size }}, {{ size }}), np.float32)
pixels[0, 0, top:bottom, left:right] = image.resize((right - left, bottom - top), Image.Resampling.BILINEAR)
session = onnxruntime.InferenceSession({{ graph }})
logits, heatmap = session.run(["logits", "heatmap"], {"pixel_values": pixels})
probability = 1 / (1 + np.exp(-({{ report.slope }} * logits[0, 0] + {{ report.intercept }})))
print(probability)
```

`model.onnx` takes `pixel_values` float32 [N, 1, {{ size }}, {{ size }}] in 0..1 and returns `logits` [N, 1], `heatmap`
[N, 16, 16] and `embedding` [N, 512].

## Reproduction

```sh
fracture train-detector --data FRACATLAS --out OUT --pretrained WEIGHTS --external DIR
```

FRACATLAS is the folder of that dataset with its `manifest.csv`, WEIGHTS the start weights with timm's names, DIR the
radiographs of another source.
{%- if report.training_minutes is not none %} It took {{ "%.0f" | format(report.training_minutes) }} minutes.
{%- endif %}

## Citation

```bibtex
@article{abedeen2023fracatlas,
  title = {FracAtlas: A Dataset for Fracture Classification, Localization and Segmentation of Musculoskeletal Radiographs},
  author = {Abedeen, Iftekharul and Rahman, Md. Ashiqur and Prottyasha, Fatema Zohra and Ahmed, Tasnim and Chowdhury, Tareque Mohmud and Shatabda, Swakkhar},
  journal = {Scientific Data},
  volume = {10},
  pages = {521},
  year = {2023},
  doi = {10.1038/s41597-023-02432-4}
}
```
"""  # noqa: E501


def render_detector_card(report: DetectorReport, repo: str | None = None) -> str:
    """Return the detector's card for the Hub repository `repo`, "owner/name", or for the bundle."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    card_data = ModelCardData(
        model_name="Fracture detector",
        license="cc-by-4.0",
        language="en",
        library_name="onnx",
        pipeline_tag="image-classification",
        tags=["medical", "radiology", "x-ray", "fracture", "onnx"],
        metrics=["roc_auc"],
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type="image-folder",
                dataset_name="FracAtlas",
                dataset_split="out-of-fold",
                metric_type="roc_auc",
                metric_name=f"AUROC, out of fold, n = {report.n}",
                metric_value=report.metrics["auroc"].value,
            )
        ],
    )
    bundled = f'"fracture_lib/bundle/{DETECTOR}/model.onnx"'
    card = ModelCard.from_template(
        card_data,
        template_str=CARD,
        name=DETECTOR,
        title=model_title(DETECTOR),
        size=DETECTOR_SIZE,
        shrunk=round(OVERSAMPLING * DETECTOR_SIZE),
        report=report,
        repo=repo,
        graph=f'hf_hub_download("{repo}", "model.onnx")' if repo else bundled,
        share=share,
        metrics=METRICS,
        outcomes_table=outcomes_table(report),
        own=report.outcomes["fractured"],
        other=report.external.get(EXTERNAL_TOTAL),
        external_table=_external_table(report),
        localization_table=_localization_table(report),
    )
    return str(card).rstrip()


def outcomes_table(report: DetectorReport) -> str:
    """Return the shares of the three outcomes, out of fold and for all images of the other source."""
    rows = {f"FracAtlas, {name}": rates for name, rates in report.outcomes.items()}
    if EXTERNAL_TOTAL in report.external:
        rows["Bone Break, all fractured, never trained on"] = report.external[EXTERNAL_TOTAL]
    return _rates_table("radiographs", rows)


def _rates_table(title: str, rows: dict[str, OutcomeRates]) -> str:
    return markdown_table(
        (title, "n", "fracture visible", "uncertain", "no fracture seen"),
        [(name, str(r.n), share(r.visible), share(r.uncertain), share(r.none)) for name, r in rows.items()],
    )


def _external_table(report: DetectorReport) -> str:
    """Return the shares of the three outcomes for the other source, by class."""
    labels = [c.label for c in CLASSES if c.label in report.external]
    return _rates_table("class", {label: report.external[label] for label in labels})


def _localization_table(report: DetectorReport) -> str:
    """Return how well the maps of the detector and of the classifiers fit the radiologists' boxes."""
    header = ("map", "n", "pointing", "center", "random place", "inside", "center", "random place")
    names = ("pointing", "pointing_center", "pointing_random", "inside", "inside_center", "inside_random")

    def cells(values: Localization) -> list[str]:
        return [getattr(values, name).percent() for name in names]

    rows = [(f"`{name}`", str(values.n), *cells(values)) for name, values in report.localization.items()]
    return markdown_table(header, rows)
