"""Processors without a chat template: what they are asked, and that a caption of their models can be explained."""

import pytest
import torch
import transformers as tf

import mmneurons as mmn
from helpers.families import opt, queries, redraw, t5
from helpers.tiny import tiny_tokenizer
from mmneurons.vlm.inputs import make_inputs
from mmneurons.vlm.pictures import open_picture

pytestmark = pytest.mark.families

SIDE = {"height": 28, "width": 28}


def plain_tokenizer():
    """One that knows of no image token, as those of these families."""
    own = tiny_tokenizer()
    names = {f"{name}_token": getattr(own, f"{name}_token") for name in ("pad", "bos", "eos", "unk")}
    return tf.PreTrainedTokenizerFast(tokenizer_object=own.backend_tokenizer, **names)


def blip2(name, language):
    tokenizer = plain_tokenizer()
    size = len(tokenizer) + 2
    case = queries(name, language(size), tokenizer.convert_tokens_to_ids("<image>"))
    images = tf.BlipImageProcessor(size=SIDE)
    kind = getattr(tf, f"{name}Processor")
    options = {"qformer_tokenizer": plain_tokenizer()} if name == "InstructBlip" else {}
    processor = kind(images, tokenizer, **options, num_query_tokens=5)
    return case.model, processor


def git():
    tokenizer = tiny_tokenizer()
    config = tf.GitConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=112,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 28,
            "patch_size": 14,
        },
    )
    images = tf.CLIPImageProcessor(size=SIDE, crop_size=SIDE)
    return tf.GitForCausalLM(config), tf.GitProcessor(images, tokenizer)


MAKERS = {
    "blip-2/opt": lambda: blip2("Blip2", opt),
    "blip-2/t5": lambda: blip2("Blip2", t5),
    "instructblip/opt": lambda: blip2("InstructBlip", opt),
    "instructblip/t5": lambda: blip2("InstructBlip", t5),
    "git": git,
}


@pytest.fixture(scope="module", params=MAKERS)
def asked(request):
    torch.manual_seed(0)
    model, processor = MAKERS[request.param]()
    redraw(model, 1.0)
    return mmn.wrap(model, processor)


def test_the_prompt_is_not_ended_and_the_pictures_tokens_are_there_once(asked, picture):
    request = make_inputs(asked, open_picture(picture))
    ids = request.inputs["input_ids"][0].tolist()
    text = asked.processor.tokenizer.decode(ids, skip_special_tokens=True)
    assert " ".join(text.split()).startswith("Describe the image in few words.")
    if asked.is_encoder_decoder:
        assert request.prefix == ""
    else:
        assert text.endswith("An image of")
        assert ids[-1] != asked.processor.tokenizer.eos_token_id
    if "git" not in asked.model.config.model_type:
        assert ids.count(asked.image_token_id) == 5


def test_a_word_of_a_caption_is_explained(asked, picture):
    found = mmn.find(asked, picture, caption="An image of a dog and a ball.", words=["dog", "ball"])
    assert found.words == ("dog", "ball")
    assert found.caption == "An image of a dog and a ball."
    spelt = asked.processor.tokenizer.decode(found["dog"].token_ids)
    assert spelt.strip() == "dog"
    assert mmn.completeness(found["dog"]).error < 1e-4
    raw = mmn.find(asked, picture, caption=found.caption, words=["dog"], against=None)["dog"]
    assert mmn.check_neurons(raw, raw.neurons(2)).error < 1e-4
    said = mmn.find(asked, picture, words=[], max_new_tokens=4)
    assert said.caption.startswith("" if asked.is_encoder_decoder else "An image of")
    assert len(said.recording) == 4 or int(said.recording.token_ids[-1]) == 2
