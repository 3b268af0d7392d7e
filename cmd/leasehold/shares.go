package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/leasehold-go/leasehold"
)

func sharesCommand() *command {
	out := format("table")
	var watch, keys bool
	return &command{
		name:  "shares",
		args:  "GROUP [FLAGS]",
		short: "Show who owns the keys of a group",
		long: `
It shows the members of a group of programs that share out keys with this library, how many keys each owns, the keys
that nobody owns, and those that were asked back from their owners and move when their work has returned; "watch --group
GROUP --timeline" shows for how long. The weight is 0 for a member that leaves. SINCE is how long ago the member's term
began, by the member's clock. A member that crashed is shown until others have its keys.`,
		examples: `
leasehold shares tenants

# Who owns which key?
leasehold shares tenants --keys

# Each change, as one JSON object a line
leasehold shares tenants -w -o json`,
		flags: func(flags *pflag.FlagSet) {
			flags.BoolVarP(&watch, "watch", "w", false,
				"show the present state, then each change, at most one a second")
			flags.BoolVar(&keys, "keys", false,
				"show the owner of each key in the table; JSON and YAML always have them")
			flags.TextVarP(&out, "output", "o", out, "output `format`: table, json or yaml")
		},
		run: func(t *tool, args []string, _ int) error {
			if out == "name" {
				return usagef("--output name: want table, json or yaml")
			}
			if len(args) == 0 {
				return usagef("missing GROUP: its name is required")
			}
			group, err := oneLease(args)
			if err != nil {
				return err
			}
			ctx, cancel := interruptible()
			defer cancel()
			return t.shares(ctx, group, sharesPrinter{out, watch, keys})
		},
	}
}

// shares prints who owns the keys of a group, once or each time that it changes.
func (t *tool) shares(ctx context.Context, group string, p sharesPrinter) error {
	opts, err := t.cluster.options()
	if err != nil {
		return err
	}
	var end error
	opts = append(opts, leasehold.WithLease(group), leasehold.WithLogger(t.log), leasehold.WithError(&end))
	if !p.watch {
		if _, err := t.get(ctx, group); err != nil { // without retries
			return err
		}
	}
	for share := range leasehold.Shares(ctx, opts...) {
		if share.Owners == nil && !p.watch {
			return fmt.Errorf("%s is not a group that can be read", group)
		}
		if err := p.print(t.out, group, share, time.Now()); err != nil || !p.watch {
			return err
		}
	}
	if ctx.Err() != nil {
		return nil // interrupted
	}
	return end
}

// A sharesPrinter prints Shares.
type sharesPrinter struct {
	format
	watch, keys bool
}

// A groupShare is a Share in JSON.
type groupShare struct {
	Group   string            `json:"group"`
	Members []groupMember     `json:"members"`
	Owners  map[string]string `json:"owners"`
	Unowned []string          `json:"unowned"`
	Moving  []string          `json:"moving"`
}

type groupMember struct {
	Identity string    `json:"identity"`
	Weight   int       `json:"weight"`
	Keys     int       `json:"keys"`
	Since    time.Time `json:"since"`
}

func (p sharesPrinter) print(w io.Writer, group string, share leasehold.Share, now time.Time) error {
	if p.format == "table" {
		return p.printTable(w, share, now)
	}
	s := groupShare{Group: group, Members: []groupMember{}, Owners: share.Owners, Unowned: share.Unowned,
		Moving: share.Moving}
	if s.Owners == nil {
		s.Owners = map[string]string{}
	}
	if s.Unowned == nil {
		s.Unowned = []string{}
	}
	if s.Moving == nil {
		s.Moving = []string{}
	}
	for _, m := range share.Members {
		s.Members = append(s.Members, groupMember{m.Identity, m.Weight, m.Keys, m.Since.UTC()})
	}
	switch {
	case p.watch && p.format == "json":
		return json.NewEncoder(w).Encode(s)
	case p.watch:
		fmt.Fprintln(w, "---")
	}
	return p.marshal(w, s)
}

func (p sharesPrinter) printTable(w io.Writer, share leasehold.Share, now time.Time) error {
	members := [][]string{{"MEMBER", "WEIGHT", "KEYS", "SINCE"}}
	for _, m := range share.Members {
		members = append(members, []string{
			printable(m.Identity), strconv.Itoa(m.Weight), strconv.Itoa(m.Keys),
			age(&metav1.MicroTime{Time: m.Since}, now),
		})
	}
	if n := len(share.Unowned); n > 0 {
		members = append(members, []string{"<none>", "", strconv.Itoa(n), ""})
	}
	var text strings.Builder
	new(table).print(&text, members) // cannot fail
	if p.keys {
		owners := [][]string{{"KEY", "OWNER"}}
		all := slices.AppendSeq(slices.Clone(share.Unowned), maps.Keys(share.Owners))
		slices.SortFunc(all, compareKeys)
		for _, key := range all {
			owners = append(owners, []string{printable(key), or(share.Owners[key])})
		}
		fmt.Fprintln(&text)
		new(table).print(&text, owners)
	} else if len(share.Unowned) > 0 {
		fmt.Fprintf(&text, "\nUnowned: %s\n", some(share.Unowned))
	}
	if len(share.Moving) > 0 {
		fmt.Fprintf(&text, "\nMoving: %s\n", some(share.Moving))
	}
	if p.watch {
		fmt.Fprintln(&text)
	}
	_, err := io.WriteString(w, text.String())
	return err
}

// some returns the first of keys for a terminal, and how many more there are.
func some(keys []string) string {
	shown := keys[:min(len(keys), 20)]
	text := printable(strings.Join(shown, " "))
	if more := len(keys) - len(shown); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// compareKeys orders the numbers of buckets by their value, and other keys as text.
func compareKeys(a, b string) int {
	x, errX := strconv.Atoi(a)
	y, errY := strconv.Atoi(b)
	if errX == nil && errY == nil {
		return x - y
	}
	return strings.Compare(a, b)
}
