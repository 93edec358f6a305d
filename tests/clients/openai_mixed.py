#!/usr/bin/env python3
"""Makes the calls of a plan with the real `openai` client and prints what each call reported.

The plan comes as JSON on stdin:

    {"base_url": ..., "model": ..., "parallel": 4,
     "calls": [{"key": ..., "user": ..., "stream": bool, "include_usage": bool, "max_tokens": n, "prompt": ...}]}

and the answer goes as JSON to stdout, one entry a call in the plan's order:

    {"usage": {"input": n, "output": n, "cached": n} or null, "usage_chunks": n, "text": ...}

Nothing is retried: a call that fails ends the script with the client's own error.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import openai


def counts(usage):
    """The client's usage object in our words."""
    details = usage.prompt_tokens_details
    cached = details.cached_tokens if details and details.cached_tokens else 0
    return {"input": usage.prompt_tokens, "output": usage.completion_tokens, "cached": cached}


def read_stream(chunks):
    usage, usage_chunks, text = None, 0, ""
    for chunk in chunks:
        if chunk.usage is not None:
            usage, usage_chunks = counts(chunk.usage), usage_chunks + 1
        for choice in chunk.choices:
            text += choice.delta.content or ""
    return {"usage": usage, "usage_chunks": usage_chunks, "text": text}


def read_document(completion):
    return {"usage": counts(completion.usage), "usage_chunks": 0, "text": completion.choices[0].message.content}


def make(plan, call):
    client = openai.OpenAI(base_url=plan["base_url"], api_key=call["key"], max_retries=0, timeout=120)
    request = {
        "model": plan["model"],
        "user": call["user"],
        "max_tokens": call["max_tokens"],
        "messages": [{"role": "user", "content": call["prompt"]}],
    }
    if not call["stream"]:
        return read_document(client.chat.completions.create(**request))
    if call["include_usage"]:
        request["stream_options"] = {"include_usage": True}
    return read_stream(client.chat.completions.create(stream=True, **request))


def main():
    plan = json.load(sys.stdin)
    with ThreadPoolExecutor(plan["parallel"]) as threads:
        results = list(threads.map(lambda call: make(plan, call), plan["calls"]))
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
