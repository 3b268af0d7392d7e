package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"
	"sigs.k8s.io/yaml"
)

// A format is how to show results.
type format string

func (f format) MarshalText() ([]byte, error) { return []byte(f), nil }

func (f *format) UnmarshalText(text []byte) error {
	switch *f = format(text); *f {
	case "table", "json", "yaml", "name":
		return nil
	}
	return fmt.Errorf("want table, json, yaml or name")
}

// marshal writes v as JSON or YAML.
func (f format) marshal(w io.Writer, v any) error {
	if f == "yaml" {
		text, err := yaml.Marshal(v)
		if err != nil {
			return err
		}
		_, err = w.Write(text)
		return err
	}
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "    ")
	return encoder.Encode(v)
}

const resource = "lease.coordination.k8s.io/"

// printLeases shows leases as they are at now. As kubectl does, JSON and YAML are a List unless one was asked for by name.
func printLeases(w io.Writer, f format, leases []coordinationv1.Lease, now time.Time, namespaces, list bool) error {
	for i := range leases {
		leases[i].TypeMeta = metav1.TypeMeta{APIVersion: coordinationv1.SchemeGroupVersion.String(), Kind: "Lease"}
		leases[i].ManagedFields = nil
	}
	switch f {
	case "name":
		for _, l := range leases {
			fmt.Fprintln(w, resource+l.Name)
		}
		return nil
	case "json", "yaml":
		if !list && len(leases) == 1 {
			return f.marshal(w, leases[0])
		}
		return f.marshal(w, map[string]any{"apiVersion": "v1", "kind": "List", "items": leases, "metadata": map[string]any{"resourceVersion": ""}})
	}
	rows := [][]string{{"NAMESPACE", "NAME", "STATUS", "HOLDER", "SINCE", "RENEWED", "DURATION", "TRANSITIONS"}}
	for _, l := range leases {
		s := l.Spec
		rows = append(rows, []string{l.Namespace, l.Name, status(s, now), or(holderOf(s)), age(s.AcquireTime, now), age(s.RenewTime, now),
			or(durationOf(s)), strconv.Itoa(int(valueOf(s.LeaseTransitions)))})
	}
	if !namespaces {
		for i := range rows {
			rows[i] = rows[i][1:]
		}
	}
	return printTable(w, rows)
}

// printTable aligns the columns of rows, without blanks at the ends of lines.
func printTable(w io.Writer, rows [][]string) error {
	var text bytes.Buffer
	t := tabwriter.NewWriter(&text, 6, 4, 3, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for line := range strings.Lines(text.String()) {
		if _, err := fmt.Fprintln(w, strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}

// status is what a Lease says about itself, by this machine's clock, which need not be its holder's.
func status(s coordinationv1.LeaseSpec, now time.Time) string {
	switch {
	case holderOf(s) == "":
		return "free"
	case s.RenewTime == nil || s.LeaseDurationSeconds == nil:
		return "held"
	case now.Sub(s.RenewTime.Time) > time.Duration(*s.LeaseDurationSeconds)*time.Second:
		return "expired"
	}
	return "held"
}

func holderOf(s coordinationv1.LeaseSpec) string { return valueOf(s.HolderIdentity) }

func durationOf(s coordinationv1.LeaseSpec) string {
	if s.LeaseDurationSeconds == nil {
		return ""
	}
	return duration.ShortHumanDuration(time.Duration(*s.LeaseDurationSeconds) * time.Second)
}

func valueOf[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// or returns s for a terminal, and what kubectl shows where there is nothing.
func or(s string) string {
	if s == "" {
		return "<none>"
	}
	return printable(s)
}

// printable returns s without what would steer a terminal: an identity may be any text.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '\ufffd'
		}
		return r
	}, s)
}

func age(t *metav1.MicroTime, now time.Time) string {
	if t == nil {
		return "<none>"
	}
	// A clock that is behind the holder's shows no negative age.
	return duration.HumanDuration(max(0, now.Sub(t.Time)))
}
