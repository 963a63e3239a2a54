/** How a shell gets the script. */
export const SHELLS = {
  bash: { install: "completion bash > /etc/bash_completion.d/steeple" },
  zsh: { install: "completion zsh > ~/.zfunc/_steeple-server" },
  fish: { install: "completion fish > ~/.config/fish/completions/steeple.fish" },
} as const;

export type Shell = keyof typeof SHELLS;

const SCRIPTS: Readonly<Record<Shell, (name: string, fn: string) => string>> = {
  // Bash ends words at ":" and "=", which SPIFFE IDs are full of, so the line is split here and the head cut off.
  bash: (name, fn) => `# Completion of ${name} for bash.
${fn}() {
  local line="\${COMP_LINE:0:COMP_POINT}" head="" each
  local -a words found
  read -ra words <<<"$line"
  [[ $line == *[[:space:]] ]] && words+=("")
  local last="\${words[\${#words[@]} - 1]}"
  mapfile -t found < <("\${words[0]}" __complete -- "\${words[@]:1}" 2>/dev/null)
  COMPREPLY=()
  if [[ \${found[0]%%$'\\t'*} == ":file" ]]; then
    compopt -o default
    return
  fi
  [[ $last == *[:=]* ]] && head="\${last%"\${last##*[:=]}"}"
  for each in "\${found[@]}"; do
    each="\${each%%$'\\t'*}"
    COMPREPLY+=("\${each#"$head"}")
  done
}
complete -F ${fn} ${name}
`,
  zsh: (name, fn) => `#compdef ${name}
# Completion of ${name} for zsh.
${fn}() {
  local line
  local -a found values described
  found=("\${(@f)$("\${words[1]}" __complete -- "\${(@)words[2,CURRENT]}" 2>/dev/null)}")
  if [[ "\${found[1]%%$'\\t'*}" == ":file" ]]; then
    _files
    return
  fi
  for line in "\${found[@]}"; do
    [[ -z "$line" ]] && continue
    values+=("\${line%%$'\\t'*}")
    described+=("\${line%%$'\\t'*}  \${line#*$'\\t'}")
  done
  compadd -l -d described -a values
}
if [[ "$funcstack[1]" == "${fn}" ]]; then
  ${fn} "$@"
else
  compdef ${fn} ${name}
fi
`,
  fish: (name, fn) => `# Completion of ${name} for fish.
function ${fn}
  set -l words (commandline -opc) (commandline -ct)
  set -l found ($words[1] __complete -- $words[2..-1] 2>/dev/null)
  if string match -q ':file*' -- $found[1]
    __fish_complete_path (commandline -ct)
    return
  end
  printf '%s\\n' $found
end
complete -c ${name} -f -a '(${fn})'
`,
};

/** To be read by the shell, or put where it looks for completions. */
export function completionScript(shell: Shell, program: string): string {
  return SCRIPTS[shell](program, `_${program.replaceAll("-", "_")}`);
}
