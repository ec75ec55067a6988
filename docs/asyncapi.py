"""The AsyncAPI 3.0 document of the public bus, as text. Imports `bus.topology`, `events` and, to write it, PyYAML.

Rule: nothing is written down twice. Messages come from events/schemas.json, exchange and routing keys from bus/topology.py.
Commands, and what workers say to machines, are the recorder's own and stay out.
"""

from __future__ import annotations

from typing import Any

import yaml

from bus import topology
from events import codec

MADE = "# Made by `make docs` from events/schemas.json and bus/topology.py; edit those instead.\n"
INFO = """\
Events go to the topic exchange under event.<type>, results come from it under result.<type>. docs/bus.md says how to use it,
docs/examples has programs that do.

An event is a CloudEvent 1.0 in structured JSON, or its data alone: then the type is that of the routing key and the id is the
property message_id. Either way a repeat under the same id is harmless. Results are CloudEvents and may come more than once under
the same id. What cannot be handled goes to the queue recorder.parked, whole, with the reason.

session-accepted and session-refused carry the id of the event that they answer as correlationid, and as the property
correlation_id."""
# Ours, in schemas.json, for the codec and the documents; `x-secret` stays, readers of the document may want it.
INTERNAL = "x-direction"
ADDRESSED = ("start", "stop", "replay")

Object = dict[str, Any]


def document() -> str:
    """docs/asyncapi.yaml."""
    return MADE + str(yaml.dump(_whole(), Dumper=_Plain, sort_keys=False, allow_unicode=True, width=120))


class _Plain(yaml.SafeDumper):  # type: ignore[misc] # PyYAML ships no types
    """Writes what is used twice twice, instead of as an anchor."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _whole() -> Object:
    names = topology.Topology()
    heard, told = codec.types("in"), codec.types("out")
    channels = {f"event.{name}": _channel(names, names.machines, name, ("", "-bare")) for name in heard}
    channels |= {f"result.{name}": _channel(names, names.unheard, name, ("",)) for name in told}
    operations = {f"take-{name}": _operation("receive", f"event.{name}") for name in heard}
    operations |= {f"tell-{name}": _operation("send", f"result.{name}") for name in told}
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "recorder", "version": "0.1.0", "description": INFO, "license": {"name": "Apache-2.0"}},
        "defaultContentType": codec.CONTENT_TYPE,
        "servers": {
            "rabbitmq": {
                "host": "localhost:5672",
                "protocol": "amqp",
                "protocolVersion": "0.9.1",
                "description": "The broker of AMQP_URL; amqps where the way to it is not yours alone.",
            }
        },
        "channels": channels,
        "operations": operations,
        "components": {"messages": _messages(heard, told), "schemas": _schemas(heard, told)},
    }


def _channel(names: topology.Topology, queue: topology.Queue, name: str, forms: tuple[str, ...]) -> Object:
    """`queue` is the one that takes such messages: its binding has the routing key's form."""
    (binding,) = queue.bindings
    exchange = {"name": names.exchange, "type": "topic", "durable": True, "autoDelete": False, "vhost": "/"}
    return {
        "address": binding.replace("#", name),
        "description": _description(name),
        "messages": {f"{name}{form}": {"$ref": f"#/components/messages/{name}{form}"} for form in forms},
        "bindings": {"amqp": {"is": "routingKey", "exchange": exchange, "bindingVersion": "0.3.0"}},
    }


def _operation(action: str, channel: str) -> Object:
    """`action` is the recorder's, as AsyncAPI 3 has it: it receives events and sends results."""
    bound: Object = {"deliveryMode": 2, "mandatory": True} if action == "receive" else {"deliveryMode": 2}
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "bindings": {"amqp": bound | {"bindingVersion": "0.3.0"}},
    }


def _messages(heard: tuple[str, ...], told: tuple[str, ...]) -> Object:
    found: Object = {}
    for name in (*heard, *told):
        found[name] = {
            "name": name,
            "title": f"{name}, as a CloudEvent",
            "summary": _description(name),
            "contentType": codec.CONTENT_TYPE,
            "payload": {
                "allOf": [
                    {"$ref": "#/components/schemas/CloudEvent"},
                    {"type": "object", "properties": {"type": {"const": name}, "data": _schema_of(name)}},
                ]
            },
        }
        if name in told and name.startswith("session-") and name != "session-finished":
            found[name]["correlationId"] = {
                "location": "$message.payload#/correlationid",
                "description": f"Id of the {', '.join(ADDRESSED[:-1])} or {ADDRESSED[-1]} that this answers.",
            }
        if name in heard:
            found[f"{name}-bare"] = {
                "name": name,
                "title": f"{name}, the data alone; the property message_id is its id",
                "summary": _description(name),
                "contentType": "application/json",
                "bindings": {"amqp": {"messageType": name, "bindingVersion": "0.3.0"}},
                "payload": _schema_of(name),
            }
    return found


def _schemas(heard: tuple[str, ...], told: tuple[str, ...]) -> Object:
    """The schemas of the public messages, and of what they refer to."""
    definitions = codec.schemas()["$defs"]
    wanted = [*heard, *told]
    for name in wanted:
        wanted += [other for other in _referred(definitions[name]) if other not in wanted]
    return {"CloudEvent": _cloud_event()} | {name: _translated(definitions[name]) for name in wanted}


def _cloud_event() -> Object:
    text = {"type": "string", "minLength": 1, "maxLength": 256}
    return {
        "type": "object",
        "description": "CloudEvents 1.0, structured mode.",
        "properties": {
            "specversion": {"const": "1.0"},
            "id": text | {"description": "What makes a repeat harmless."},
            "source": text | {"description": f"Who says it; {codec.SOURCE} for results."},
            "type": text,
            "time": {"type": "string", "format": "date-time"},
            "subject": {"type": "string", "description": "TaskId, or TaskId/speaker/n."},
            "datacontenttype": {"type": "string"},
            "correlationid": {"type": "string", "description": "Id of the event that this answers."},
            "data": {"type": "object"},
        },
        "required": ["specversion", "id", "source", "type", "data"],
    }


def _description(name: str) -> str:
    return str(codec.schemas()["$defs"][name]["description"])


def _schema_of(name: str) -> Object:
    return {"$ref": f"#/components/schemas/{name}"}


def _referred(value: Any) -> list[str]:
    """Names of the definitions that a schema refers to."""
    if isinstance(value, dict):
        own = [value["$ref"].rsplit("/", 1)[1]] if "$ref" in value else []
        return own + [name for child in value.values() for name in _referred(child)]
    return [name for child in value for name in _referred(child)] if isinstance(value, list) else []


def _translated(value: Any) -> Any:
    """A schema of JSON Schema 2020-12 in the dialect of AsyncAPI, draft 7: other places, and `dependencies`. Draft 7 reads
    nothing beside a `$ref`, so there the reference goes into an `allOf`."""
    if isinstance(value, list):
        return [_translated(each) for each in value]
    if not isinstance(value, dict):
        return value
    made = {name: _translated(each) for name, each in value.items() if name != INTERNAL}
    if "dependentRequired" in made:
        made["dependencies"] = made.pop("dependentRequired")
    if "$ref" in made:
        reference = _schema_of(made.pop("$ref").rsplit("/", 1)[1])
        return made | {"allOf": [reference]} if made else reference
    return made
