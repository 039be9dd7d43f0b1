import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mmneurons as mmn
from helpers import tiny
from mmneurons.errors import OptionError, RecordingError
from mmneurons.vlm.recording import image_activations

TENSORS = ("activations", "gates", "log_probabilities", "entry", "writes", "stream", "image_activations")


def close(one, other, tolerance=2e-4):
    for name in TENSORS:
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=tolerance, atol=tolerance, msg=name)


def full_forward(vlm, recording):
    """Everything by one forward without a cache and hooks of the test's own."""
    tokens = torch.cat([recording.inputs["input_ids"], recording.token_ids[None, :-1]], 1)
    inputs = {**recording.inputs, "input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    seen = {}
    layers = vlm.model.model.language_model.layers
    handles = [
        layer.mlp.down_proj.register_forward_pre_hook(lambda m, args, i=i: seen.update({i: args[0].detach()}))
        for i, layer in enumerate(layers)
    ]
    with torch.no_grad():
        output = vlm.model.model(**inputs, output_hidden_states=True)
        logits = vlm.model.lm_head(output.last_hidden_state)
    for handle in handles:
        handle.remove()
    return torch.stack([seen[i][0] for i in range(len(layers))], 1), logits[0], output.hidden_states


def test_what_is_kept_is_what_a_full_forward_computes(vlm, picture):
    recording = mmn.record(vlm, picture, max_new_tokens=9)
    activations, logits, _ = full_forward(vlm, recording)
    prompt, steps = recording.inputs["input_ids"].shape[1], len(recording)
    emitting = slice(prompt - 1, prompt - 1 + steps)
    torch.testing.assert_close(recording.activations, activations[emitting], rtol=1e-4, atol=1e-4)
    expected = logits[emitting].log_softmax(-1)[torch.arange(steps), recording.token_ids]
    torch.testing.assert_close(recording.log_probabilities, expected, rtol=1e-4, atol=1e-4)
    image = recording.inputs["input_ids"][0] == vlm.image_token_id
    assert recording.image_positions.tolist() == image.nonzero().flatten().tolist()
    torch.testing.assert_close(
        recording.image_activations, activations[:prompt][image].transpose(0, 1), rtol=1e-4, atol=1e-4
    )


def test_gates_times_the_ungated_half_are_the_activations(llava, picture):
    assert mmn.record(llava, picture, max_new_tokens=3).gates is None
    recording = mmn.record(llava, picture, max_new_tokens=3, gates=True)
    ungated = []
    handles = [
        layer.mlp.up_proj.register_forward_hook(lambda m, a, out: ungated.append(out[0, -1].detach()))
        for layer in llava.model.model.language_model.layers
    ]
    with torch.no_grad():
        llava.model(**recording.inputs)
    for handle in handles:
        handle.remove()
    product = recording.gates[0] * torch.stack(ungated)
    torch.testing.assert_close(recording.activations[0], product, rtol=1e-4, atol=1e-5)


def test_it_says_what_generate_says(vlm, picture):
    recording = mmn.record(vlm, picture, max_new_tokens=9)
    plain = vlm.model.generate(**recording.inputs, max_new_tokens=9, do_sample=False)
    assert plain[0, recording.inputs["input_ids"].shape[1] :].tolist() == recording.token_ids.tolist()
    assert recording.caption == mmn.caption(vlm, picture, max_new_tokens=9)


def test_a_batch_is_the_same_as_one_by_one(vlm, pictures):
    together = mmn.record(vlm, pictures, max_new_tokens=8, gates=True)
    for picture, recording in zip(pictures, together, strict=True):
        alone = mmn.record(vlm, picture, max_new_tokens=8, gates=True)
        assert alone.token_ids.tolist() == recording.token_ids.tolist()
        assert alone.inputs["input_ids"].tolist() == recording.inputs["input_ids"].tolist()
        close(alone, recording)


def test_a_batch_whose_prompts_differ_in_length_is_really_padded(pictures):
    vlm = mmn.wrap(*tiny.tiny_llava_next())
    lengths = {recording.inputs["input_ids"].shape[1] for recording in mmn.record(vlm, pictures, max_new_tokens=1)}
    assert len(lengths) > 1


def test_rows_that_end_at_different_steps(llava, pictures):
    """A row stops at its end token, whatever the others still say."""

    def length(tokens, end):
        return tokens.index(end) + 1 if end in tokens else len(tokens)

    before = mmn.record(llava, pictures, max_new_tokens=10)
    said = [recording.token_ids.tolist() for recording in before]
    tokens_said = [token for tokens in said for token in tokens]
    end = next(token for token in tokens_said if len({length(tokens, token) for tokens in said}) > 1)
    model, processor = tiny.tiny_llava()
    model.generation_config.eos_token_id = end
    after = mmn.record(mmn.wrap(model, processor), pictures, max_new_tokens=10)
    for old, new, tokens in zip(before, after, said, strict=True):
        steps = length(tokens, end)
        assert new.token_ids.tolist() == tokens[:steps]
        torch.testing.assert_close(new.activations, old.activations[:steps], rtol=2e-4, atol=2e-4)


def test_forced_is_the_same_as_generated(vlm, picture):
    generated = mmn.record(vlm, picture, max_new_tokens=9, gates=True)
    forced = mmn.record(vlm, picture, caption=generated.caption, gates=True)
    steps = len(generated)
    assert forced.token_ids.tolist()[:steps] == generated.token_ids.tolist()
    assert forced.caption == generated.caption
    assert forced.forced
    for name in ("activations", "gates", "log_probabilities", "entry", "writes", "stream"):
        torch.testing.assert_close(
            getattr(forced, name)[:steps], getattr(generated, name), rtol=2e-4, atol=2e-4, msg=name
        )


def test_beams_are_recorded_as_they_came_out(vlm, picture):
    recording = mmn.record(vlm, picture, max_new_tokens=8, generation={"num_beams": 3})
    plain = vlm.model.generate(**recording.inputs, max_new_tokens=8, num_beams=3, do_sample=False)
    assert plain[0, recording.inputs["input_ids"].shape[1] :].tolist()[: len(recording)] == recording.token_ids.tolist()
    activations, _, _ = full_forward(vlm, recording)
    start = recording.inputs["input_ids"].shape[1] - 1
    torch.testing.assert_close(recording.activations, activations[start:], rtol=1e-4, atol=1e-4)


def test_sampling_is_seeded_and_its_probabilities_are_raw(llava, picture):
    sample = {"do_sample": True, "temperature": 3.0, "top_k": 7}
    state = torch.random.get_rng_state()
    one, other, third = (
        mmn.record(llava, picture, max_new_tokens=12, seed=seed, generation=sample) for seed in (1, 1, 2)
    )
    assert torch.equal(state, torch.random.get_rng_state())
    assert one.token_ids.tolist() == other.token_ids.tolist() != third.token_ids.tolist()
    _, logits, _ = full_forward(llava, one)
    start = one.inputs["input_ids"].shape[1] - 1
    expected = logits[start:].log_softmax(-1)[torch.arange(len(one)), one.token_ids]
    torch.testing.assert_close(one.log_probabilities, expected, rtol=1e-4, atol=1e-4)


def test_several_answers_are_refused(llava, picture):
    with pytest.raises(OptionError, match="num_return_sequences"):
        mmn.record(llava, picture, generation={"num_return_sequences": 2, "do_sample": True})
    with pytest.raises(OptionError, match="no_such_option"):
        mmn.record(llava, picture, generation={"no_such_option": 2})
    with pytest.raises(OptionError, match="temperature"):
        mmn.record(llava, picture, temperature=2.0)


def hooks(model):
    return [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_no_hook_is_left_behind(picture, error):
    model, processor = tiny.tiny_llava()
    vlm = mmn.wrap(model, processor)
    # transformers leaves hooks of its own in the vision tower
    model.generate(**mmn.record(vlm, picture, max_new_tokens=1).inputs, max_new_tokens=1)
    before = hooks(model)
    model.train()
    if error is None:
        mmn.record(vlm, picture, max_new_tokens=2)
    else:

        def fail(*_):
            raise error

        handle = model.model.language_model.layers[1].register_forward_hook(fail)
        with pytest.raises(error):
            mmn.record(vlm, picture, max_new_tokens=2)
        with pytest.raises(error):
            mmn.record(vlm, picture, caption="An image of a dog.")
        handle.remove()
    assert hooks(model) == before
    assert all(module.training for module in model.modules())


def test_dropout_does_not_reach_a_recording(picture):
    model, processor = tiny.tiny_llava()
    for layer in model.model.language_model.layers:
        layer.mlp.act_fn = torch.nn.Sequential(layer.mlp.act_fn, torch.nn.Dropout(0.5))
    vlm = mmn.wrap(model, processor)
    model.train()
    close(mmn.record(vlm, picture, max_new_tokens=4), mmn.record(vlm, picture, max_new_tokens=4), tolerance=0)


def test_image_activations_beyond_the_budget_come_from_a_second_prefill(vlm, picture):
    neurons = [(2, 5), (0, 3), (2, 100), (1, 7)]
    kept = mmn.record(vlm, picture, max_new_tokens=3)
    dropped = mmn.record(vlm, picture, max_new_tokens=3, image_budget=1000)
    assert dropped.image_activations is None
    torch.testing.assert_close(
        image_activations(vlm, kept, neurons), image_activations(vlm, dropped, neurons), rtol=1e-5, atol=1e-5
    )


def test_a_module_that_is_passed_by_is_noticed(picture):
    model, processor = tiny.tiny_llava()
    vlm = mmn.wrap(model, processor)
    mlp = model.model.language_model.layers[1].mlp
    mlp.down_proj.forward, weight = None, mlp.down_proj.weight
    mlp.forward = lambda x: (mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)) @ weight.T
    with pytest.raises(RecordingError, match="passed by"):
        mmn.record(vlm, picture, max_new_tokens=2)


def test_inputs_by_hand_without_a_processor(llava, picture):
    own = mmn.record(llava, picture, max_new_tokens=5)
    bare = mmn.wrap(llava.model)
    recording = mmn.record(bare, inputs=dict(own.inputs), max_new_tokens=5)
    close(recording, own, tolerance=0)
    assert recording.caption == ""
    with pytest.raises(RecordingError, match="without a processor"):
        mmn.record(bare, picture)
    padded = {**own.inputs, "attention_mask": torch.zeros_like(own.inputs["attention_mask"])}
    with pytest.raises(OptionError, match="without padding"):
        mmn.record(bare, inputs=padded)
    with pytest.raises(OptionError, match="not both"):
        mmn.record(llava, picture, inputs=dict(own.inputs))


def test_a_generated_placeholder_is_suppressed(picture):
    model, processor = tiny.tiny_llava()
    model.generation_config.suppress_tokens = None
    vlm = mmn.wrap(model, processor)
    with torch.no_grad():
        model.lm_head.weight[vlm.image_token_id] = 0
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(len(model.lm_head.weight)))
        model.lm_head.bias[vlm.image_token_id] = 1e4
    recording = mmn.record(vlm, picture, max_new_tokens=5)
    assert vlm.image_token_id not in recording.token_ids.tolist()


@pytest.mark.parametrize("options", [{}, {"caption": "An image of a dog."}])
def test_a_recording_that_is_dropped_is_gone_at_once(llava, picture, options):
    """It does not wait for the collector of cycles, which in a long run would come after gigabytes."""

    def held():
        return sum(t.numel() for t in gc.get_objects() if isinstance(t, torch.Tensor))

    mmn.record(llava, picture, max_new_tokens=4, **options)
    gc.collect()
    gc.disable()
    try:
        before = held()
        kept = mmn.record(llava, picture, max_new_tokens=4, **options)
        assert held() > before
        del kept
        assert held() == before
    finally:
        gc.enable()


COMPILED = """
import sys
import numpy as np
import torch
from PIL import Image
import mmneurons as mmn
from helpers import tiny
from mmneurons.errors import AnatomyError, RecordingError

model, processor = tiny.tiny_llava()
picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
vlm = mmn.wrap(model, processor)
expected = mmn.record(vlm, picture, max_new_tokens=4)
for layer in model.model.language_model.layers:
    layer.forward = torch.compile(layer.forward, backend="eager")
try:
    if sys.argv[1] == "wrapped":
        vlm = mmn.wrap(model, processor)
    else:
        model.generate(**expected.inputs, max_new_tokens=4, do_sample=False)
    seen = mmn.record(vlm, picture, max_new_tokens=4)
except (RecordingError, AnatomyError) as refusal:
    print("refused", refusal)
else:
    assert seen.token_ids.tolist() == expected.token_ids.tolist()
    torch.testing.assert_close(seen.activations, expected.activations, rtol=1e-4, atol=1e-5)
    print("right")
"""


@pytest.mark.slow
@pytest.mark.parametrize("when", ["wrapped", "run"])
def test_a_compiled_model_is_recorded_rightly_or_refused(when):
    """Hooks that come after compilation can be passed by; then there is no recording rather than a short one.

    In a process of its own: compilation and the checks of shapes do not go together.
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    ran = subprocess.run(
        [sys.executable, "-c", COMPILED, when], capture_output=True, text=True, env=environment, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("right") or "refused" in ran.stdout
