const REFERENCE = /\$(?:\{([*#$@!?\-0-9])\}|\{([^}]{1,1000})\}|(\{\}?)|([*#$@!?\-0-9])|([A-Za-z0-9_]+))/g;

export interface Expansion {
  readonly text: string;
  /** Names that are not set; they became nothing. */
  readonly unset: readonly string[];
}

/**
 * `$NAME` and `${NAME}` become the variable's value, `$$` a dollar sign; a broken `${}` disappears and a lone `$`
 * stays, all as Go's os.Expand does it.
 */
export function expandEnv(text: string, variables: Readonly<Record<string, string | undefined>>): Expansion {
  const unset = new Set<string>();
  const expanded = text.replace(
    REFERENCE,
    (_all, bracedMark?: string, braced?: string, broken?: string, mark?: string, plain?: string) => {
      if (broken !== undefined) return "";
      const name = bracedMark ?? braced ?? mark ?? plain ?? "";
      if (name === "$") return "$";
      const value = Object.hasOwn(variables, name) ? variables[name] : undefined;
      if (value === undefined) unset.add(name);
      return value ?? "";
    },
  );
  return { text: expanded, unset: [...unset] };
}
