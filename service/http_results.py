"""What the classifier says, as JSON answers."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence

from service import http_schema
from service.bundle.manifest import DecisionReference
from service.bundle.postprocess import Prediction
from service.classification import find_slowest
from service.classifier import Classification, ModelDescription, Timings
from service.errors import ErrorCode, RequestError
from service.http_answer import STATUS, Answer, encode_json
from service.http_trial import tell_trial
from service.models import Unavailable
from service.trial import TrialDescription


def answer_models(
    models: Sequence[ModelDescription],
    unavailable: Sequence[Unavailable],
    trials: Sequence[TrialDescription],
) -> Answer:
    """Returns the answer that lists models."""
    document: http_schema.Models = {
        "models": [_describe(model) for model in models],
        "unavailable": [
            {"name": one.name, "version": one.version, "state": one.state, "reason": one.reason}
            for one in unavailable
        ],
        "trials": [tell_trial(trial) for trial in trials],
    }
    return Answer(body=encode_json(document))


def answer_model(model: ModelDescription) -> Answer:
    """Returns the answer that describes one model."""
    return Answer(body=encode_json(_describe(model)))


def answer_labels(model: ModelDescription) -> Answer:
    """Returns the answer that lists the labels of one model, by class id."""
    document: http_schema.Labels = {
        "model": model.name,
        "version": model.version,
        "labels": list(model.labels),
    }
    return Answer(body=encode_json(document))


def answer_card(model: ModelDescription) -> Answer:
    """Returns the answer that is the model card of one model.

    Raises:
        RequestError: `not_found`: it has none.
    """
    if model.card is None:
        raise RequestError(ErrorCode.NOT_FOUND, "this model has no card")
    return Answer(body=model.card.encode(), media_type=b"text/markdown; charset=utf-8")


def answer_single(result: Classification, request_id: str) -> Answer:
    """Returns the answer for one image."""
    document: http_schema.Single = {"request_id": request_id, **_tell(result)}
    headers = (server_timing(result.timings),)
    return Answer(body=encode_json(document), headers=headers, results=(result,))


def answer_several(results: list[Classification | RequestError], request_id: str) -> Answer:
    """Returns the answer for several images: always 200, each result with a status of its own."""
    document: http_schema.Several = {
        "request_id": request_id,
        "results": [_tell_item(item, result) for item, result in enumerate(results)],
    }
    # They ran side by side, so the slowest one tells where the time went.
    timings = [result.timings for result in results if not isinstance(result, RequestError)]
    slowest = max(timings, key=lambda one: one.total_s, default=None)
    headers = (server_timing(slowest),) if slowest else ()
    return Answer(body=encode_json(document), headers=headers, results=results)


def _describe(model: ModelDescription) -> http_schema.Model:
    return {
        "name": model.name,
        "version": model.version,
        "state": model.state,
        "is_default": model.is_default,
        "provider": model.provider,
        "variant": model.variant,
        "classes": model.classes,
        "input_height": model.input_height,
        "input_width": model.input_width,
        "digest": model.digest,
        "top1": model.top1,
        "decision": _tell_decision(model.decision.abstain_below, model.decision.reference),
        "roll_up": _tell_reference(model.decision.roll_up),
        "label_sets": [
            {
                "tta": one.tta,
                "levels": [
                    {
                        "coverage": level.coverage,
                        "measured_coverage": level.measured_coverage,
                        "mean_labels": level.mean_labels,
                    }
                    for level in one.levels
                ],
            }
            for one in model.decision.conformal
        ],
        "version_labels": list(model.version_labels),
        "kind": model.kind,
        "members": list(model.members),
    }


def _tell(result: Classification) -> http_schema.Outcome:
    verdict = result.verdict
    outcome: http_schema.Outcome = {
        "model": result.model,
        "version": result.version,
        "predictions": _tell_predictions(result.predictions),
        "abstained": verdict.abstained,
        "decision": _tell_decision(verdict.threshold, result.reference),
        "image": {"width": result.width, "height": result.height, "format": result.format},
        "batch_views": result.batch_views,
    }
    if verdict.group is not None:
        outcome["group"] = {"label": verdict.group.label, "score": verdict.group.score}
    if result.label_set is not None:
        outcome["label_set"] = {
            "coverage": result.label_set.coverage,
            "predictions": _tell_predictions(result.label_set.predictions),
        }
    if result.members:
        outcome["members"] = [
            {
                "model": one.model,
                "version": one.version,
                "tta": one.tta,
                "label": one.label,
                "score": one.score,
            }
            for one in result.members
        ]
    if result.embedding is not None:
        outcome["embedding"] = result.embedding.tolist()
    if result.view_pngs:
        outcome["views"] = [b64encode(png).decode("ascii") for png in result.view_pngs]
    return outcome


def _tell_predictions(predictions: Sequence[Prediction]) -> list[http_schema.Prediction]:
    return [{"label": one.label, "index": one.index, "score": one.score} for one in predictions]


def _tell_decision(
    threshold: float | None, reference: DecisionReference | None
) -> http_schema.Decision | None:
    if threshold is None:
        return None
    return {
        "abstain_below": threshold,
        "coverage": None if reference is None else reference.coverage,
        "accuracy": None if reference is None else reference.accuracy,
    }


def _tell_reference(reference: DecisionReference | None) -> http_schema.Reference | None:
    if reference is None:
        return None
    return {"coverage": reference.coverage, "accuracy": reference.accuracy}


def _tell_item(
    item: int, result: Classification | RequestError
) -> http_schema.ItemOutcome | http_schema.ItemFailure:
    if isinstance(result, RequestError):
        return {
            "item": item,
            "status": STATUS[result.code],
            "error": {"code": result.code, "detail": result.detail},
        }
    return {"item": item, "status": 200, **_tell(result)}


def describe_work(results: Sequence[Classification]) -> tuple[tuple[bytes, bytes], ...]:
    """Returns the headers for what the forms of other servers have no place for.

    They tell who answered, in which batch and where the time went; of several images, the slowest.
    """
    slowest = find_slowest(results)
    return (
        server_timing(slowest.timings),
        (b"x-model", f"{slowest.model}@{slowest.version}".encode()),
        (b"x-batch-views", b"%d" % slowest.batch_views),
    )


def server_timing(timings: Timings) -> tuple[bytes, bytes]:
    """Returns the header that tells where the time went, in milliseconds."""
    value = b"decode;dur=%.3f, queue;dur=%.3f, infer;dur=%.3f, total;dur=%.3f" % (
        timings.decode_s * 1000,
        timings.queue_s * 1000,
        timings.infer_s * 1000,
        timings.total_s * 1000,
    )
    return b"server-timing", value
