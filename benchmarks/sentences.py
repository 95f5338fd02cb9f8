"""all-MiniLM-L6-v2 in integers: how close do its sentence vectors stay to float, and how large is the file?

Fifty sentences are scored, one batch with padding; forty others, in batches of eight, calibrate.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import arguments, conditions, print_table, write_json
from _minilm import Inputs, cosines, encode, load_minilm

import kvant
from kvant import Recipe

RECIPES = {
    "static": Recipe(),
    "static, best effort": Recipe(effort="best"),
    "dynamic": Recipe(arithmetic="dynamic"),
}
COLUMNS = ["all-MiniLM-L6-v2", "smallest cosine", "mean cosine", "8 bits x 8 bits", "size", "of float", "quantized in"]
BATCH = 8
CALIBRATION = tuple("""
A red bus stopped in front of the old library.
The committee will announce its decision on Friday.
Can you recommend a good book about the history of science?
Heavy rain flooded several streets in the city centre last night.
She plays the violin in a small chamber orchestra.
The new phone has a better camera but a smaller battery.
Photosynthesis turns light into chemical energy.
Our flight was delayed by three hours because of fog.
He forgot to water the plants while we were away.
Interest rates rose for the third time this year.
What time does the museum open on Sundays?
The recipe calls for two eggs, flour, sugar and a pinch of salt.
Please send me the signed contract before noon.
The goalkeeper saved a penalty in the last minute.
Water boils at a lower temperature high in the mountains.
They painted the kitchen yellow and the bedroom blue.
Is there a pharmacy near the train station?
The telescope has found a planet the size of the Earth.
I would like to cancel my subscription.
The judge postponed the trial until next month.
My grandmother knits warm socks for everyone in the family.
An earthquake shook the island early in the morning.
The program crashes whenever I open a large file.
Fresh bread smells wonderful.
The price of oil fell sharply after the announcement, and shares of airlines gained more than five percent.
Who wrote the music for this film?
Bees pollinate many of the crops that we eat.
You should see a doctor if the fever does not go down.
The children built a castle out of sand and shells.
No.
A fox crossed the road in front of our car.
The lecture on medieval trade routes was surprisingly entertaining, although it lasted more than two hours.
Turn left after the second traffic light.
Many species of frogs are threatened by a fungus.
The warranty does not cover damage caused by water.
He runs ten kilometres every morning before breakfast.
The printer is out of paper again.
Volunteers planted a thousand trees along the river.
Vaccines train the immune system to recognise a virus.
How much is a return ticket to the coast?
""".strip().splitlines())  # fmt: skip
SENTENCES = tuple("""
How do I reset my password?
The cat sat on the mat.
A man is playing a guitar on the street.
The stock market closed lower on Monday.
What is the capital of Australia?
She bought a second-hand bicycle for her son.
Scientists have discovered a new species of beetle in the rain forest.
I cannot log in to my account any more.
The soup is too salty.
Our team won the championship after extra time.
Where can I find a vegetarian restaurant?
The bridge will be closed for repairs until October.
He studied mathematics and later became a pianist.
Clouds form when water vapour condenses.
The battery of my laptop lasts only two hours.
Two dogs are running through a field of snow.
The government plans to raise the minimum wage next year.
How far is the Moon from the Earth?
Add the onions and fry them until they are golden.
The parcel was delivered to the wrong address.
A storm is expected to reach the coast by tomorrow evening.
My sister works as a nurse in a children's hospital.
The painting was sold at an auction for three million dollars.
Which planet has the most moons?
The hotel room was clean, but the street was noisy all night.
Regular exercise lowers the risk of heart disease.
They cancelled the concert because the singer was ill.
The museum shows photographs from the nineteen-twenties.
Could you please turn down the music?
Whales are mammals, not fish.
The train to Vienna leaves from platform nine.
I have been waiting for an answer to my letter for six weeks.
The jury found him not guilty.
Plastic waste in the ocean harms turtles and sea birds.
He opened the window to let in some fresh air.
What is the difference between a virus and a bacterium?
The company has dismissed its chief executive.
A boy is jumping into a swimming pool.
The translation of the novel took her almost four years.
Yes, of course.
The function returns an empty list if nothing was found.
Potatoes were brought to Europe from South America.
Our neighbours have invited us to their daughter's wedding.
The brakes of the car must be checked.
How many people live in Tokyo?
The gardener cut the hedge and swept up the leaves.
Fans queued for hours in the cold to see the final match, and many of them went home without a ticket.
The dentist told me to come back in half a year.
Light travels faster than sound.
Thank you for your help!
""".strip().splitlines())  # fmt: skip


def float_bytes(net: torch.nn.Module) -> int:
    """Bytes of the float weights."""
    return sum(value.numel() * value.element_size() for value in net.parameters())


def vectors(net: torch.nn.Module, inputs: Inputs) -> Any:
    """The float network's vectors (N, 384)."""
    with torch.inference_mode():
        return net(*map(torch.from_numpy, inputs)).numpy()


def measure(net: torch.nn.Module, recipe: Recipe) -> dict[str, Any]:
    """Quantize on the calibration sentences and compare the vectors of the others."""
    batches = [encode(CALIBRATION[start : start + BATCH]) for start in range(0, len(CALIBRATION), BATCH)]
    start = time.perf_counter()
    quantized = kvant.quantize(net, tuple(map(torch.from_numpy, batches[0])), calibration=batches, recipe=recipe)
    seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.kvant"
        quantized.save(path)
        inputs, size = encode(SENTENCES), path.stat().st_size
        found = cosines(np.asarray(kvant.load(path)(*inputs)), vectors(net, inputs))
    counts = quantized.macs()
    wide = sum(each.count for each in counts if "int16" in each.dtypes)
    return {
        "bytes": size,
        # Rows of float32 that get a scale when they run have 8 bits then.
        "eight": round(1 - wide / sum(each.count for each in counts), 4),
        "share": round(size / float_bytes(net), 4),
        "smallest": round(float(found.min()), 5),
        "mean": round(float(found.mean()), 5),
        "seconds": round(seconds, 1),
    }


def rows(report: dict[str, Any]) -> list[list[str]]:
    """A row for float and one for each recipe."""
    lines = [["float32 (torch)", "", "", "", f"{report['float_bytes'] / 1e6:.1f} MB", "", ""]]
    for name, found in report["results"].items():
        size = [f"{found['bytes'] / 1e6:.1f} MB", f"{found['share']:.3f} x", f"{found['seconds']:.0f} s"]
        lines.append(
            [f"kvant, {name}", f"{found['smallest']:.4f}", f"{found['mean']:.4f}", f"{found['eight']:.0%}", *size]
        )
    return lines


def main() -> None:
    parser: argparse.ArgumentParser = arguments(__doc__)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    net = load_minilm()
    results = {}
    for name, recipe in RECIPES.items():
        print(f"{name} ...", flush=True)
        results[name] = measure(net, recipe)
    report = {"sentences": len(SENTENCES), "calibration_sentences": len(CALIBRATION), **conditions(options.threads)}
    report |= {"float_bytes": float_bytes(net), "results": results}
    print_table(COLUMNS, rows(report))
    write_json(options.output / "sentences.json", report)


if __name__ == "__main__":
    main()
