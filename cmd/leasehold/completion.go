package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

func completionCommand() *command {
	return &command{
		name:    "completion",
		args:    "bash|zsh",
		short:   "Print a completion script for a shell",
		offline: true,
		long:    `It completes commands, flags, and the names of leases, for which it asks the API server.`,
		examples: `
# in ~/.bashrc
source <(leasehold completion bash)

# in ~/.zshrc
source <(leasehold completion zsh)`,
		run: func(t *tool, args []string, _ int) error {
			if len(args) != 1 || args[0] != "bash" && args[0] != "zsh" {
				return usagef("for which shell? want bash or zsh")
			}
			return t.completion(args[0])
		},
	}
}

func (t *tool) completion(shell string) error {
	if shell == "zsh" {
		fmt.Fprintln(t.out, `(( $+functions[compdef] )) || { autoload -U compinit && compinit -i }
autoload -U +X bashcompinit && bashcompinit`)
	}
	var names []string
	var cases strings.Builder
	for _, c := range commands() {
		names = append(names, c.name)
		var flags []string
		t.flagSet(c).VisitAll(func(f *pflag.Flag) { flags = append(flags, "--"+f.Name) })
		slices.Sort(flags)
		words := ""
		switch c.name {
		case "run", "get", "watch", "claim", "release", "report":
			words = ` $(leasehold get -o name "${where[@]}" 2>/dev/null | cut -d/ -f2)`
		case "completion":
			words = " bash zsh"
		}
		fmt.Fprintf(&cases, "\t%s) flags=%q; words=\"%s\" ;;\n", c.name, strings.Join(flags, " "), strings.TrimSpace(words))
	}
	_, err := fmt.Fprintf(t.out, `_leasehold() {
	local word=${COMP_WORDS[COMP_CWORD]} flags= words= where=() i
	COMPREPLY=()
	if [ "$COMP_CWORD" = 1 ]; then
		COMPREPLY=($(compgen -W "%s help version" -- "$word"))
		return
	fi
	for ((i = 2; i < COMP_CWORD; i++)); do
		case ${COMP_WORDS[i]} in
		--) return ;; # the command of run
		-n|--namespace|--context|--kubeconfig) where+=("${COMP_WORDS[i]}" "${COMP_WORDS[i+1]}") ;;
		esac
	done
	case ${COMP_WORDS[1]} in
%s	esac
	case $word in
	-*) COMPREPLY=($(compgen -W "$flags" -- "$word")) ;;
	*) COMPREPLY=($(compgen -W "$words" -- "$word")) ;;
	esac
}
complete -o default -F _leasehold leasehold
`, strings.Join(names, " "), cases.String())
	return err
}
