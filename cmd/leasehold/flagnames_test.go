package main

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Each option that the tool gives the library, and each value of one, has the name of an argument or a flag that there
// is, unless its value is none of the user's. What flagNames has besides is what the library says.
func TestFlagNames(t *testing.T) {
	internal := []string{"WithLogger", "WithMonitor", "WithError"}
	used := map[string]bool{}
	option := regexp.MustCompile(`\bleasehold\.(With\w+|AutoCreate|CreateNew|UseExisting)\b`)
	for path, text := range read(t, func(path string) bool {
		return strings.HasPrefix(path, "cmd/leasehold/") && isCode(path)
	}) {
		for _, match := range option.FindAllStringSubmatch(text, -1) {
			used[match[1]] = true
			if flagNames[match[1]] == "" && !slices.Contains(internal, match[1]) {
				t.Errorf("%s gives the library %s, which flagNames does not have", path, match[1])
			}
		}
	}
	flags := map[string]bool{}
	for _, c := range commands() {
		for _, arg := range regexp.MustCompile(`[A-Z]+`).FindAllString(c.args, -1) {
			flags[arg] = true
		}
		for _, name := range regexp.MustCompile(`--[a-z-]+`).FindAllString((&tool{}).flagSet(c).FlagUsages(), -1) {
			flags[name] = true
		}
	}
	library := ""
	for _, text := range read(t, func(path string) bool { return filepath.Dir(path) == "." && isCode(path) }) {
		library += text
	}
	for _, name := range slices.Sorted(maps.Keys(flagNames)) {
		if !used[name] && (!strings.Contains(name, " ") || !strings.Contains(library, name)) {
			t.Errorf("%q is neither an option that the tool gives the library, nor what it says", name)
		}
		flag := regexp.MustCompile(`--[a-z-]+|^[A-Z]+`).FindString(flagNames[name])
		if !flags[flag] {
			t.Errorf("%s is called %q: there is no %q", name, flagNames[name], flag)
		}
	}
}

// What a user wrote stays as it is.
func TestByFlags(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"leasehold: WithSlots and CreateNew are mutually exclusive",
			"leasehold: --slots and --create=new are mutually exclusive"},
		{`lease name "WithSlots": held by "a \" WithSlots", WithSlots`,
			`lease name "WithSlots": held by "a \" WithSlots", --slots`},
		{"lease lost: the work did not call Beat for 5s",
			"lease lost: the command did not change --beat-file for 5s"},
		{"the table of a group: WithLease has to name a group", "the table of a group: GROUP has to name one"},
		{"WithSlotsAndMore", "WithSlotsAndMore"},
		{"WithBeat \"", "--beat \""},
		{"", ""},
	} {
		if got := byFlags(tt.text); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.text, got, tt.want)
		}
	}
}

// The log names flags too, where it shows an error.
func TestErrorByFlags(t *testing.T) {
	var log bytes.Buffer
	tool := &tool{logs: newLogWriter(&log)}
	if err := tool.openLog(); err != nil {
		t.Fatal(err)
	}
	tool.log.Info("WithSlots", "error", errors.New("WithSlots: want 1"), "name", "WithSlots", "other", fs.ErrNotExist,
		"none", error(nil), "number", 7)
	tool.logs.flush()
	want := ` msg=WithSlots error="--slots: want 1" name=WithSlots other="file does not exist" none=<nil> number=7` +
		"\n"
	if got := log.String(); !strings.HasSuffix(got, want) {
		t.Errorf("%s, want %s", got, want)
	}
}
