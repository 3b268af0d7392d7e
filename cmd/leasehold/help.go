package main

import (
	"fmt"
	"io"
	"runtime/debug"
	"strings"

	"github.com/spf13/pflag"
)

// usage prints the help of the tool.
func (t *tool) usage(w io.Writer) {
	const about = "%s works with Kubernetes Leases: it runs a program only while it holds one, and shows who does.\n\n"
	fmt.Fprintf(w, about, t.name)
	fmt.Fprintf(w, "Usage:\n  %s COMMAND [FLAGS] [ARGUMENTS]\n\nCommands:\n", t.name)
	for _, c := range commands() {
		fmt.Fprintf(w, "  %-11s %s\n", c.name, c.short)
	}
	fmt.Fprintf(w, "  %-11s %s\n", "help", "Show the help of a command")
	fmt.Fprintf(w, "  %-11s %s\n", "version", "Show the version")
	fmt.Fprint(w, "\nExamples:\n", t.indent(`# Of all replicas, one runs the program
leasehold run reconciler --restart -- ./reconciler

# Who leads, and since when?
leasehold get -A`), `

Exit codes:
  0 done, 1 failed, 2 wrong usage
  run, claim: 123 the lease was lost or handed over, 124 it was not acquired in time
  run, spread: 125 leasehold failed or wrong usage, 126 the command cannot be executed, 127 it was not found
  128+n signal n ended the command of run, or run, claim or handover while it waited
  other: that of the command of run
`)
}

// help prints the help of one command.
func (t *tool) help(w io.Writer, c *command, flags *pflag.FlagSet) {
	fmt.Fprintf(w, "%s.\n\n", c.short)
	if c.long != "" {
		fmt.Fprintf(w, "%s\n\n", strings.TrimSpace(c.long))
	}
	fmt.Fprintf(w, "Usage:\n  %s\n", strings.TrimSpace(t.name+" "+c.name+" "+c.args))
	if c.examples != "" {
		fmt.Fprintf(w, "\nExamples:\n%s\n", t.indent(c.examples))
	}
	own := pflag.NewFlagSet(c.name, pflag.ContinueOnError)
	own.SortFlags = false
	if c.flags != nil {
		c.flags(own)
	}
	if own.HasFlags() {
		fmt.Fprintf(w, "\nFlags:\n%s", own.FlagUsages())
	}
	if !c.offline {
		common := pflag.NewFlagSet("common", pflag.ContinueOnError)
		flags.VisitAll(func(f *pflag.Flag) {
			if own.Lookup(f.Name) == nil {
				common.AddFlag(f)
			}
		})
		fmt.Fprintf(w, "\nCommon flags:\n%s", common.FlagUsages())
	}
}

// indent returns examples, indented, with the name by which the tool was called.
func (t *tool) indent(examples string) string {
	lines := strings.Split(strings.TrimSpace(examples), "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, "leasehold ") {
			line = t.name + strings.TrimPrefix(line, "leasehold")
		}
		lines[i] = strings.TrimRight("  "+strings.ReplaceAll(line, "$(leasehold ", "$("+t.name+" "), " ")
	}
	return strings.Join(lines, "\n")
}

func (t *tool) version() error {
	version := "(unknown)"
	if info, ok := debug.ReadBuildInfo(); ok {
		version = info.Main.Version
	}
	_, err := fmt.Fprintln(t.out, "leasehold", version)
	return err
}
