import type { Struct, Struct__Output } from "./gen/google/protobuf/Struct.ts";
import type { Value, Value__Output } from "./gen/google/protobuf/Value.ts";

type Json = Readonly<Record<string, unknown>>;

/** A JSON object as `google.protobuf.Struct`. What JSON has no word for becomes null. */
export function structFromJson(object: Json): Struct {
  const fields = Object.entries(object).filter(([, value]) => value !== undefined);
  return { fields: Object.fromEntries(fields.map(([name, value]) => [name, valueFromJson(value)])) };
}

function valueFromJson(value: unknown): Value {
  if (typeof value === "number") return { numberValue: value };
  if (typeof value === "string") return { stringValue: value };
  if (typeof value === "boolean") return { boolValue: value };
  if (Array.isArray(value)) return { listValue: { values: value.map(valueFromJson) } };
  return typeof value === "object" && value !== null
    ? { structValue: structFromJson(value as Json) }
    : { nullValue: "NULL_VALUE" };
}

/** Members in the order of their names, as Go prints them. */
export function jsonFromStruct({ fields }: Struct__Output): Json {
  const names = Object.keys(fields).sort();
  return Object.fromEntries(names.map((name) => [name, jsonFromValue(fields[name])]));
}

function jsonFromValue(value: Value__Output | undefined): unknown {
  switch (value?.kind) {
    case "numberValue":
      return value.numberValue;
    case "stringValue":
      return value.stringValue;
    case "boolValue":
      return value.boolValue;
    case "listValue":
      return (value.listValue?.values ?? []).map(jsonFromValue);
    case "structValue":
      return value.structValue ? jsonFromStruct(value.structValue) : {};
    default:
      return null;
  }
}
