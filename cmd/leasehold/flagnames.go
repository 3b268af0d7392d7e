package main

import (
	"cmp"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// flagNames has the flag or argument that sets each of the library's options, or a value of one, and what the library
// says about its functions where a flag does their work.
var flagNames = map[string]string{
	"WithLease":           "LEASE",
	"WithNamespace":       "--namespace",
	"WithRESTConfig":      "--kubeconfig",
	"WithIdentity":        "--identity",
	"WithDuration":        "--duration",
	"WithRenewDeadline":   "--renew-deadline",
	"WithRenewInterval":   "--renew-interval",
	"WithCreateMode":      "--create",
	"AutoCreate":          "--create=auto",
	"CreateNew":           "--create=new",
	"UseExisting":         "--create=never",
	"WithFieldManager":    "--field-manager",
	"WithLabels":          "--labels",
	"WithDeleteOnRelease": "--delete-on-release",
	"WithSlots":           "--slots",
	"WithPriority":        "--priority",
	"WithYield":           "--yield",
	"WithAdvertise":       "--advertise",
	"WithBeat":            "--beat",
	"WithWeight":          "--weight",

	"WithLease has to name a group": "GROUP has to name one",
	"the work did not call Beat":    "the command did not change --beat-file",
}

// named matches what flagNames has, the longest first, and quoted text, which is the user's own.
var named = func() *regexp.Regexp {
	names := slices.SortedFunc(maps.Keys(flagNames), func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	return regexp.MustCompile(`"(?:[^"\\]|\\.)*"|\b(?:` + strings.Join(names, "|") + `)\b`)
}()

// byFlags returns a text of the library with flags in place of its options: people who use the tool do not know those.
func byFlags(text string) string {
	return named.ReplaceAllStringFunc(text, func(match string) string { return cmp.Or(flagNames[match], match) })
}

// errorByFlags is byFlags for the errors in the log.
func errorByFlags(_ []string, attr slog.Attr) slog.Attr {
	if attr.Value.Kind() == slog.KindAny {
		if err, ok := attr.Value.Any().(error); ok {
			attr.Value = slog.StringValue(byFlags(err.Error()))
		}
	}
	return attr
}
