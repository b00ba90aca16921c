"""The command line: predict, evaluate, train, ensemble, refusal, cards, push, dataset, space.

Exit codes: 0 all went well; 1 some input could not be used, each named on stderr in one line;
2 the command itself was wrong (argparse).
"""

import argparse
import json
import os
import sys
from pathlib import Path

from safetensors import SafetensorError

from fracture_lib.cards import TEMPLATE, percent, write_card, write_results_table
from fracture_lib.classifier import check_top_k
from fracture_lib.config import read_json, to_json, write_json
from fracture_lib.errors import FractureError
from fracture_lib.hub import BUNDLE
from fracture_lib.panel import Panel
from fracture_lib.registry import ENSEMBLE, MODELS

NAMES = ", ".join((*MODELS, ENSEMBLE))
DISCLAIMER = "Not a medical device; there is no 'no fracture' class."


def main(arguments=None):
    """Run one command; return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except FractureError as error:
        return _complain(error)
    except KeyboardInterrupt:
        return _complain("stopped; a train command given again goes on from its last checkpoint.")
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, SafetensorError) as error:  # a folder that cannot be written, a full disk
        return _complain(error)


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m fracture_lib", description=f"Names fracture types in X-rays. {DISCLAIMER}"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    predict = commands.add_parser("predict", help="name the fracture type in films")
    predict.add_argument("images", nargs="+", metavar="IMAGE")
    predict.add_argument("--model", default="all", help=f"{NAMES}, a folder, a Hub id, or all")
    predict.add_argument("--top-k", type=int, default=3, metavar="K")
    predict.add_argument("--anyway", action="store_true", help="answer also what does not look like a film")
    predict.add_argument("--json", action="store_true", help="one JSON object a line, errors too")
    _runtime(predict)
    predict.set_defaults(run=_predict)

    evaluate = commands.add_parser("evaluate", help="score a model on a folder of labelled films")
    evaluate.add_argument("--model", required=True, help=f"{NAMES}, a folder or a Hub id")
    evaluate.add_argument("--data", required=True, metavar="DIR")
    evaluate.add_argument("--split", help="read this split folder only, such as Test")
    evaluate.add_argument(
        "--apart-from", metavar="SPLIT", help="also score the films without a near copy in this split"
    )
    evaluate.add_argument("--out", type=Path, metavar="FILE", help="write the whole report as JSON")
    evaluate.add_argument(
        "--record",
        action="store_true",
        help="keep the report as Test in the model's evaluation.json and card",
    )
    _runtime(evaluate)
    evaluate.set_defaults(run=_evaluate)

    train = commands.add_parser("train", help="train a model on a folder of labelled films")
    train.add_argument("--model", required=True, choices=MODELS)
    train.add_argument("--data", required=True, metavar="DIR")
    train.add_argument("--out", required=True, type=Path, metavar="DIR")
    train.add_argument("--split", default="Train", help="the split folder to train on")
    train.add_argument("--folds", type=int, default=5)
    train.add_argument("--held-out", type=int, metavar="N", help="measure N of the folds; all by default")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--epochs", type=int, help="instead of the recipe's")
    train.add_argument("--pretrained", help="safetensors file or Hub id that resnet50 starts from")
    train.set_defaults(run=_train)

    ensemble = commands.add_parser("ensemble", help="measure trained models together")
    ensemble.add_argument(
        "--models", nargs="+", required=True, metavar="DIR", help="folders written by train"
    )
    ensemble.add_argument("--out", required=True, metavar="DIR")
    ensemble.set_defaults(run=_ensemble)

    refusal = commands.add_parser("refusal", help="fit and measure what is refused as no bone X-ray")
    refusal.add_argument("--data", required=True, metavar="DIR", help="labelled films, as for train")
    refusal.add_argument("--split", default="Train")
    refusal.add_argument("--others", required=True, metavar="DIR", help="<kind>/picture of what is none")
    refusal.set_defaults(run=_refusal)

    cards = commands.add_parser("cards", help="write the bundled models' cards and the README's table anew")
    cards.set_defaults(run=_cards)

    push = commands.add_parser("push", help="publish a trained model on the Hub, with its card")
    push.add_argument("--model", required=True, metavar="DIR", help="a folder written by train, or a name")
    push.add_argument("--force", action="store_true", help="also over a model that was measured to be better")
    _repository(push)
    push.set_defaults(run=_push_model)

    dataset = commands.add_parser("dataset", help="publish labelled films on the Hub")
    dataset.add_argument("verb", choices=["push"])
    dataset.add_argument("--data", required=True, metavar="DIR")
    dataset.add_argument("--split", help="of this split folder only; it is split anew, by group")
    dataset.add_argument("--folds", type=int, default=5, help="one of them is the split validation")
    _repository(dataset)
    dataset.set_defaults(run=_push_dataset)

    space = commands.add_parser("space", help="publish the page as a Space")
    space.add_argument("verb", choices=["push"])
    space.add_argument(
        "--models", nargs="*", default=[], metavar="ID@COMMIT", help="draw from these; else from the bundle"
    )
    space.add_argument("--datasets", nargs="*", default=[], metavar="ID", help="that the Space names")
    _repository(space)
    space.set_defaults(run=_push_space)
    return parser


def _repository(parser):
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME")
    parser.add_argument("--private", action="store_true", help="where it must be made")
    parser.add_argument("--create-pr", action="store_true", help="propose it instead of changing the branch")
    parser.add_argument("--dry-run", action="store_true", help="say what would be sent, and send nothing")


def _runtime(parser):
    parser.add_argument("--runtime", choices=("onnx", "native"), default="onnx")


def _predict(options):
    check_top_k(options.top_k)
    panel = Panel(options.runtime)
    names = MODELS if options.model == "all" else [options.model]
    for name in names:
        panel.classifier(name)  # a wrong model ends the command before any film is read
    failed = False
    for image in options.images:
        try:
            result = panel.ask(image, names, anyway=options.anyway)
            if not result.predictions:
                raise FractureError(f"{result.verdict.sentence} Give --anyway to ask all the same.")
        except FractureError as error:
            failed = True
            if options.json:
                print(json.dumps({"image": image, "error": str(error)}))
            _complain(f"{image}: {error}")
            continue
        for notice in result.notices:
            print(f"{image}: {notice}", file=sys.stderr)
        for p in result.predictions.values():
            if options.json:
                print(json.dumps({"image": image, **p.to_dict(options.top_k)}))
            else:
                answer = ", ".join(f"{s.label} {s.probability:.1%}" for s in p.scores[: options.top_k])
                print(f"{image}\t{p.model}\t{answer}\t[{p.source}]")
    if not options.json:
        print(DISCLAIMER, file=sys.stderr)
    return int(failed)


def _evaluate(options):
    from fracture_lib.evaluation import evaluate

    if options.out:  # before the work whose result it will hold
        options.out.parent.mkdir(parents=True, exist_ok=True)
    report = evaluate(options.model, options.data, options.split, options.runtime, options.apart_from)
    if options.out:
        options.out.write_text(to_json(report), encoding="utf-8")  # it may be a pipe
    _summarise(report)
    if "clean" in report:
        _summarise({**report, "protocol": f"no near copy in {options.apart_from}", **report["clean"]})
    if options.record:
        _record(options.model, report)
    return 0


def _record(model, report):
    folder = BUNDLE / model if model in (*MODELS, ENSEMBLE) else Path(model)
    path = folder / "evaluation.json"
    if not path.exists():
        raise FractureError(f"--record writes into a bundled or local model; {model} is neither.")
    write_json(path, {**read_json(path), "test": report})
    if report["model"] in MODELS:
        write_card(folder)


def _ensemble(options):
    from fracture_lib.ensemble import measure_ensemble

    _summarise(measure_ensemble(options.models, options.out))
    return 0


def _refusal(options):
    from fracture_lib.data import load_films
    from fracture_lib.refusal import fit

    films = load_films(options.data, options.split)
    gatekeeper = Panel().gatekeeper()
    report = fit(films, options.others, lambda pixels: gatekeeper.answer(pixels).features)
    print(f"false refusal: {percent(report['false_refusal'])}, n = {report['n']} films")
    for kind, found in report["detection"].items():
        print(f"{kind:28} {percent(found)}, n = {found['n']}")
    return 0


def _cards(options):
    for name in MODELS:
        write_card(BUNDLE / name)
    write_results_table(TEMPLATE.parent / "README.md", BUNDLE)
    return 0


def _push_model(options):
    from fracture_lib.publish import plan_model

    folder = BUNDLE / options.model if options.model in MODELS else options.model
    return _push(options, plan_model(folder, options.repo), "model", force=options.force)


def _push_dataset(options):
    from fracture_lib.data import load_films
    from fracture_lib.publish import plan_dataset

    return _push(options, plan_dataset(load_films(options.data, options.split), options.folds), "dataset")


def _push_space(options):
    from fracture_lib.publish import plan_space, set_variables, variables_for

    variables = variables_for(options.models)
    _push(options, plan_space(options.repo, options.models, options.datasets), "space")
    if options.create_pr and variables:
        print("left as they are; once it is merged, set these variables of the Space:")
        print(*(f"  {name}={value}" for name, value in variables.items()), sep="\n")
    elif not options.dry_run:
        set_variables(options.repo, variables)
    return 0


def _push(options, files, kind, **more):
    from fracture_lib.publish import push

    address, lines = push(
        files,
        options.repo,
        kind,
        private=options.private,
        create_pr=options.create_pr,
        dry_run=options.dry_run,
        **more,
    )
    print(*lines, sep="\n")
    print(f"pushed: {address}" if address else "dry run: nothing was sent")
    return 0


def _train(options):
    from dataclasses import replace

    from fracture_lib.recipes import RECIPES
    from fracture_lib.training import train

    recipe = RECIPES[options.model]
    if options.epochs:
        recipe = replace(recipe, epochs=options.epochs)
    report = train(
        options.model,
        options.data,
        options.out,
        split=options.split,
        count=options.folds,
        held_out=options.held_out,
        seed=options.seed,
        pretrained=options.pretrained,
        recipe=recipe,
    )
    _summarise(report)
    print(f"written to {options.out}")
    return 0


def _summarise(report):
    print(f"{report['model']}: n = {report['n']} films in {report['groups']} groups, {report['protocol']}")
    for name, metric in report["metrics"].items():
        print(f"{name:28} {metric['value']}  (95 % {metric['low']} to {metric['high']})")


def _complain(error):
    print(f"error: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
