#!/usr/bin/env bash
# The README's section "Call it", run as it is printed: every command works, and what the README
# shows as an answer is the answer. Starts a server of its own.
source "$(dirname "$0")/common.sh"

cd "$scratch"
start_dev "$scratch/kmsgate-dev" || fail "$(<"$scratch/kmsgate-dev.log")"
mkdir -p target/release
ln -s "$kmsgate" target/release/kmsgate

# Writes each block of the section to a file of its own, NN.sh, and the answer that is printed
# behind it, if one is, to NN.answer.
python3 - "$root/README.md" <<'PYTHON'
import re
import sys
from pathlib import Path

section = Path(sys.argv[1]).read_text().split("\n## Call it\n")[1].split("\n## ")[0]
blocks = re.findall(r"^```(\w+)\n(.*?)^```$(?:\s+^```text\n(.*?)^```$)?", section, re.M | re.S)
for number, (language, text, answer) in enumerate(blocks):
    if language == "python":
        text = f"python3 - <<'PYTHON'\n{text}PYTHON\n"
    Path(f"{number:02}.sh").write_text(text)
    if answer:
        Path(f"{number:02}.answer").write_text(answer)
PYTHON

# Shows the block that failed, what it said, and why that is wrong; where a block's own output goes
# to a file, this does not.
exec 3>&2
wrong() {
  fail "$(<"$block")"$'\n'"-- said"$'\n'"$(<said)"$'\n'"-- but $1" 2>&3
}

# All blocks run in this one shell, for a later one uses what an earlier one set. A block whose
# answer is printed may be about a failure; in any other each command must succeed.
blocks=0
for block in [0-9][0-9].sh; do
  if [[ -f ${block%.sh}.answer ]]; then
    set +e
    source "./$block" >said 2>&1
    set -e
    answer=$(<"${block%.sh}.answer")
    [[ $(<said) == *"$answer" ]] || wrong "should end with $answer"
  else
    trap 'wrong "a command failed"' ERR
    source "./$block" >said 2>&1
    trap - ERR
    ! grep -q '"error' said || wrong "it is an error"
  fi
  blocks=$((blocks + 1))
done
((blocks >= 10)) || fail "only $blocks blocks found"
ok "$blocks blocks of commands do what the README says"

stop "$server" || fail "the server ended with $?"
