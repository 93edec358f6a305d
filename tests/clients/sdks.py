#!/usr/bin/env python3
"""Makes one call of each kind with the real `openai` and `anthropic` clients, and prints what each of them saw.

The plan comes as JSON on stdin:

    {"base_url": ..., "model": ..., "alias": ..., "key": ..., "stranger": ...}

and the answer goes as JSON to stdout: a list of {"call": name, "usage": {input, output, cached} or null, "saw": ...}, in
the order in which the calls were made. `saw` is what the client's own types made of the reply.

Nothing is retried: a call that fails when it should not ends the script with the client's own error.
"""

import json
import sys

import anthropic
import openai

PROMPT = "Say something about mills."
TOOL = {"name": "weather", "description": "The weather of a town", "parameters": {"type": "object", "properties": {}}}


def openai_usage(usage):
    details = usage.prompt_tokens_details
    cached = details.cached_tokens if details and details.cached_tokens else 0
    return {"input": usage.prompt_tokens, "output": usage.completion_tokens, "cached": cached}


def responses_usage(usage):
    return {
        "input": usage.input_tokens,
        "output": usage.output_tokens,
        "cached": usage.input_tokens_details.cached_tokens,
    }


def anthropic_usage(usage):
    read, created = usage.cache_read_input_tokens or 0, usage.cache_creation_input_tokens or 0
    return {"input": usage.input_tokens + read + created, "output": usage.output_tokens, "cached": read}


def refusal(errors, make):
    try:
        make()
    except errors.APIStatusError as error:
        body = error.body if isinstance(error.body, dict) else {}
        return {
            "class": type(error).__name__,
            "status": error.status_code,
            "reason": error.response.headers.get("x-sluice-reason"),
            "type": (body.get("error") or body).get("type"),
            "should_retry": error.response.headers.get("x-should-retry"),
        }
    return None


def with_openai(plan, tell):
    client = openai.OpenAI(base_url=plan["base_url"] + "/v1", api_key=plan["key"], max_retries=0, timeout=120)
    model, messages = plan["model"], [{"role": "user", "content": PROMPT}]

    tell("models", None, [model.id for model in client.models.list()])
    tell("model", None, client.models.retrieve(model).id)
    reply = client.chat.completions.create(model=plan["alias"], messages=messages, max_tokens=5)
    tell("chat by alias", openai_usage(reply.usage), reply.choices[0].message.content)
    reply = client.chat.completions.create(model=model, messages=messages, max_tokens=4, n=2)
    tell("chat of two", openai_usage(reply.usage), len(reply.choices))
    reply = client.chat.completions.create(
        model=model, messages=messages, max_tokens=5, tools=[{"type": "function", "function": TOOL}]
    )
    tell("chat with tools", openai_usage(reply.usage), reply.choices[0].finish_reason)
    chunks = list(client.chat.completions.create(model=model, messages=messages, max_tokens=5, stream=True))
    tell("chat stream", None, any(chunk.usage for chunk in chunks))
    reply = client.completions.create(model=model, prompt=PROMPT, max_tokens=6)
    tell("completion", openai_usage(reply.usage), reply.choices[0].text)
    chunks = list(client.completions.create(model=model, prompt=PROMPT, max_tokens=6, stream=True))
    tell("completion stream", None, any(chunk.usage for chunk in chunks))
    reply = client.responses.create(model=model, input=PROMPT, max_output_tokens=7)
    tell("response", responses_usage(reply.usage), reply.status)
    events = list(client.responses.create(model=model, input=PROMPT, max_output_tokens=7, stream=True))
    final = events[-1]
    tell("response stream", responses_usage(final.response.usage), final.type)

    unknown = refusal(openai, lambda: client.chat.completions.create(model="nobody", messages=messages))
    tell("unknown model", None, unknown)
    client = client.with_options(api_key=plan["stranger"])
    tell("unknown key", None, refusal(openai, lambda: client.chat.completions.create(model=model, messages=messages)))


def with_anthropic(plan, tell):
    client = anthropic.Anthropic(base_url=plan["base_url"], api_key=plan["key"], max_retries=0, timeout=120)
    model, messages = plan["model"], [{"role": "user", "content": PROMPT}]

    tell("anthropic models", None, [model.id for model in client.models.list()])
    reply = client.messages.create(model=model, messages=messages, max_tokens=8)
    tell("message", anthropic_usage(reply.usage), reply.stop_reason)
    with client.messages.stream(model=model, messages=messages, max_tokens=8) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    # llama.cpp tells the cache at the start only, and the client's snapshot keeps it.
    tell("message stream", anthropic_usage(final.usage), bool(text))
    tell("count", None, client.messages.count_tokens(model=model, messages=messages).input_tokens)
    unknown = refusal(anthropic, lambda: client.messages.create(model="nobody", messages=messages, max_tokens=1))
    tell("anthropic unknown model", None, unknown)
    client = client.with_options(api_key=plan["stranger"])
    unknown = refusal(anthropic, lambda: client.messages.create(model=model, messages=messages, max_tokens=1))
    tell("anthropic unknown key", None, unknown)


def main():
    plan, told = json.load(sys.stdin), []

    def tell(call, usage, saw):
        told.append({"call": call, "usage": usage, "saw": saw})

    with_openai(plan, tell)
    with_anthropic(plan, tell)
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
