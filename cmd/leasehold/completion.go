package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func completionCommand() *command {
	return &command{
		name:    "completion",
		args:    "bash|zsh",
		short:   "Print a completion script for a shell",
		offline: true,
		long: `
It completes commands, flags and their values, and the names of leases and namespaces, for which it asks the API
server for at most two seconds. For "kubectl leasehold" no script is needed: link the tool as
kubectl_complete-leasehold too, in a directory of $PATH, and kubectl's own completion uses it.`,
		examples: `
# in ~/.bashrc
source <(leasehold completion bash)

# in ~/.zshrc
source <(leasehold completion zsh)`,
		run: func(t *tool, args []string, _ int) error {
			if len(args) != 1 || !slices.Contains(shells, args[0]) {
				return usagef("for which shell? want bash or zsh")
			}
			return t.completion(args[0])
		},
	}
}

var shells = []string{"bash", "zsh"}

func (t *tool) completion(shell string) error {
	if shell == "zsh" {
		fmt.Fprintln(t.out, `(( $+functions[compdef] )) || { autoload -U compinit && compinit -i }
autoload -U +X bashcompinit && bashcompinit`)
	}
	_, err := fmt.Fprintf(t.out, `_leasehold() {
	local line directive=0
	COMPREPLY=()
	while IFS= read -r line; do
		case $line in
		:*) directive=${line#:} ;;
		*) COMPREPLY+=("$line") ;;
		esac
	done <<< "$(leasehold %s "${COMP_WORDS[@]:1:$COMP_CWORD}" 2>/dev/null)"
	[ $((directive & %d)) = 0 ] || compopt -o nospace 2>/dev/null
	[ $((directive & %d)) = 0 ] || compopt +o default 2>/dev/null
}
complete -o default -F _leasehold leasehold
`, completeArg, noSpace, noFiles)
	return err
}

const (
	// completeArg is the command by which a shell asks for completions of the arguments that follow.
	completeArg = "__complete"
	// completerName is the name under which kubectl calls a plugin for completions.
	completerName = "kubectl_complete-leasehold"
	// completionTimeout bounds the requests for a completion, and with it the time that a shell waits.
	completionTimeout = 2 * time.Second
)

// Directives of Cobra, which kubectl reads after the candidates.
const (
	noSpace = 2 // a candidate is to be continued
	noFiles = 4 // do not complete names of files where there is no candidate
)

// complete prints the candidates for the last of words, one a line, and a directive.
func (t *tool) complete(words []string) error {
	c := inTime(func(ctx context.Context) completions { return t.candidates(ctx, words) })
	for _, candidate := range c.candidates {
		if strings.HasSuffix(candidate, "=") {
			c.directive |= noSpace
		}
		fmt.Fprintln(t.out, candidate)
	}
	_, err := fmt.Fprintf(t.out, ":%d\n", c.directive)
	return err
}

// completions are the candidates for a word.
type completions struct {
	candidates []string
	directive  int
}

// inTime returns what find finds; nothing if that takes longer than completionTimeout, whatever blocks.
func inTime(find func(context.Context) completions) completions {
	found := make(chan completions, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), completionTimeout)
		defer cancel()
		found <- find(ctx)
	}()
	select {
	case c := <-found:
		return c
	case <-time.After(completionTimeout):
		return completions{directive: noFiles}
	}
}

// candidates returns the completions of the last of words.
func (t *tool) candidates(ctx context.Context, words []string) completions {
	words, given := join(words)
	if len(words) == 0 {
		words = []string{""}
	}
	last := len(words) - 1
	words, word := t.commandFirst(words[:last]), words[last]
	candidates, directive := t.suggest(ctx, words, word)
	candidates = slices.DeleteFunc(candidates, func(c string) bool { return !strings.HasPrefix(c, word) })
	for i := range candidates {
		candidates[i] = candidates[i][given:]
	}
	return completions{candidates, directive}
}

// join undoes what bash does to --flag=value: it makes three words of it, and a name with colons becomes many. It
// returns also how many bytes of the last word are in words before the shell's last one.
func join(words []string) (joined []string, given int) {
	breaks := func(word string) bool { return word != "" && strings.Trim(word, "=:") == "" }
	for i, word := range words {
		if i > 0 && (breaks(word) || breaks(words[i-1])) {
			last := &joined[len(joined)-1]
			given = len(*last)
			*last += word
			if breaks(word) {
				given = len(*last)
			}
			continue
		}
		joined, given = append(joined, word), 0
	}
	return joined, given
}

// suggest returns all values of a word that follows words, the first of which is the command if there is one.
func (t *tool) suggest(ctx context.Context, words []string, word string) (values []string, directive int) {
	var names []string
	for _, c := range commands() {
		names = append(names, c.name)
	}
	command, args := &command{}, words
	if len(words) > 0 && !strings.HasPrefix(words[0], "-") {
		if words[0] == "help" {
			return names, noFiles
		}
		if command, args = find(words[0]), words[1:]; command == nil {
			return nil, noFiles
		}
	}
	flags := t.flagSet(command)
	flags.ParseErrorsAllowlist.UnknownFlags = true
	// An incomplete flag at the end is an error; the flags before it are set.
	flags.Parse(args)
	if flags.ArgsLenAtDash() >= 0 {
		return nil, 0 // the command of run
	}
	if name, _, found := strings.Cut(word, "="); found && strings.HasPrefix(word, "--") {
		values, directive = t.flagValues(ctx, command, flags.Lookup(name[2:]))
		for i := range values {
			values[i] = name + "=" + values[i]
		}
		return values, directive
	}
	if len(args) > 0 {
		if f := valueFlag(flags, args[len(args)-1]); f != nil {
			return t.flagValues(ctx, command, f)
		}
	}
	if strings.HasPrefix(word, "-") {
		flags.VisitAll(func(f *pflag.Flag) { values = append(values, "--"+f.Name) })
		return append(values, "--help"), noFiles
	}
	if command.name == "" {
		return append(names, "help", "version"), noFiles
	}
	return t.arguments(ctx, command, flags), noFiles
}

// valueFlag returns the flag that arg leaves without its value, nil if there is none.
func valueFlag(flags *pflag.FlagSet, arg string) *pflag.Flag {
	var f *pflag.Flag
	if name, long := strings.CutPrefix(arg, "--"); long {
		f = flags.Lookup(name)
	} else if len(arg) == 2 && arg[0] == '-' {
		f = flags.ShorthandLookup(arg[1:])
	}
	if f == nil || f.NoOptDefVal != "" {
		return nil
	}
	return f
}

// flagValues returns the values of a flag of a command.
func (t *tool) flagValues(ctx context.Context, c *command, f *pflag.Flag) (values []string, directive int) {
	if f == nil {
		return nil, noFiles
	}
	switch f.Name {
	case "output":
		switch c.name {
		case "get", "create":
			return slices.Clone(outputs), noFiles
		case "explain", "shares":
			return []string{"table", "json", "yaml"}, noFiles
		}
		return []string{"table", "json", "yaml", "name"}, noFiles
	case "create":
		return slices.Clone(createModes[:]), noFiles
	case "log-level":
		return []string{"debug", "info", "warn", "error"}, noFiles
	case "log-format":
		return []string{"text", "json"}, noFiles
	case "namespace":
		return t.namespaces(ctx), noFiles
	case "context", "cluster", "user":
		config, err := t.cluster.config().RawConfig()
		if err != nil {
			return nil, noFiles
		}
		switch f.Name {
		case "context":
			return slices.Sorted(maps.Keys(config.Contexts)), noFiles
		case "cluster":
			return slices.Sorted(maps.Keys(config.Clusters)), noFiles
		}
		return slices.Sorted(maps.Keys(config.AuthInfos)), noFiles
	case "kubeconfig", "certificate-authority", "client-certificate", "client-key", "html", "record", "from",
		"keys-from":
		return nil, 0 // a file
	}
	return nil, noFiles
}

// arguments returns the values of the argument that follows those of flags.
func (t *tool) arguments(ctx context.Context, c *command, flags *pflag.FlagSet) []string {
	given := flags.Args()
	switch c.name {
	case "completion":
		return slices.Clone(shells)
	case "run", "spread", "claim", "release", "handover", "shares":
		if len(given) > 0 {
			return nil
		}
	case "get", "watch", "report":
		if all, _ := flags.GetBool("all-namespaces"); all {
			return nil
		}
	default:
		return nil
	}
	return slices.DeleteFunc(t.leases(ctx), func(name string) bool { return slices.Contains(given, name) })
}

// leases returns the names of the leases in the namespace.
func (t *tool) leases(ctx context.Context) (names []string) {
	ns, err := t.cluster.namespace()
	if err != nil {
		return nil
	}
	client, err := t.cluster.client()
	if err != nil {
		return nil
	}
	list, err := client.Leases(ns).List(ctx, metav1.ListOptions{ResourceVersion: "0"}) // from the cache
	if err != nil {
		return nil
	}
	for _, l := range list.Items {
		names = append(names, l.Name)
	}
	return names
}

// namespaces returns the names of the namespaces.
func (t *tool) namespaces(ctx context.Context) (names []string) {
	client, err := t.cluster.client()
	if err != nil {
		return nil
	}
	raw, err := client.RESTClient().Get().AbsPath("/api/v1/namespaces").Do(ctx).Raw()
	if err != nil {
		return nil
	}
	var list metav1.PartialObjectMetadataList
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil
	}
	for _, ns := range list.Items {
		names = append(names, ns.Name)
	}
	slices.Sort(names)
	return names
}

// calledForCompletion reports whether kubectl calls the tool for completions.
func calledForCompletion() bool {
	return strings.TrimSuffix(filepath.Base(os.Args[0]), ".exe") == completerName
}
