package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/duration"
	"sigs.k8s.io/yaml"

	"github.com/leasehold-go/leasehold/internal/annotation"
)

// A format is a value of --output that needs no template.
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

// A printer prints Leases as kubectl does. It may be called again and again: headers are printed once.
type printer struct {
	output
	namespaces bool // a column of the table
	noHeaders  bool
	list       bool // JSON, YAML and templates get a List also of one Lease

	table table
}

// print prints leases as they are at now.
func (p *printer) print(w io.Writer, leases []coordinationv1.Lease, now time.Time) error {
	var rows []row
	for _, l := range leases {
		rows = append(rows, row{l, status(l.Spec, now)})
	}
	return p.printRows(w, rows, now)
}

// A row is a Lease with its status.
type row struct {
	lease  coordinationv1.Lease
	status string
}

func (p *printer) printRows(w io.Writer, rows []row, now time.Time) error {
	switch p.kind {
	case "table", "wide":
		return p.printTable(w, rows, now)
	case "name":
		for _, r := range rows {
			fmt.Fprintln(w, resource+r.lease.Name)
		}
		return nil
	}
	objects := []any{}
	for _, r := range rows {
		l := r.lease
		l.TypeMeta = metav1.TypeMeta{APIVersion: coordinationv1.SchemeGroupVersion.String(), Kind: "Lease"}
		if p.template == nil { // as kubectl does
			l.ManagedFields = nil
		}
		object, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&l)
		if err != nil {
			return err
		}
		objects = append(objects, object)
	}
	if p.columns != nil {
		return p.printColumns(w, objects)
	}
	var object any = map[string]any{"apiVersion": "v1", "kind": "List", "items": objects,
		"metadata": map[string]any{"resourceVersion": ""}}
	if !p.list && len(objects) == 1 {
		object = objects[0]
	}
	if p.template != nil {
		return p.template(w, object)
	}
	return format(p.kind).marshal(w, object)
}

func (p *printer) printTable(w io.Writer, rows []row, now time.Time) error {
	var lines [][]string
	if !p.noHeaders && !p.table.begun() {
		lines = append(lines, []string{"NAMESPACE", "NAME", "STATUS", "HOLDER", "SINCE", "RENEWED", "DURATION",
			"TRANSITIONS", "EXPIRES", "AGE", "MANAGER", "ADDRESS", "PRIORITY", "NEXT"})
	}
	for _, r := range rows {
		s, notes := r.lease.Spec, annotation.Read(&r.lease)
		lines = append(lines, []string{
			r.lease.Namespace, r.lease.Name, r.status, or(holderOf(s)), age(s.AcquireTime, now), age(s.RenewTime, now),
			or(durationOf(s)), strconv.Itoa(int(valueOf(s.LeaseTransitions))),
			expiry(s, now), age(created(r.lease), now), or(manager(r.lease)), or(notes.Address), or(priority(notes)),
			or(cmp.Or(notes.Standby.Identity, notes.Successor)),
		})
	}
	for i, line := range lines {
		if p.kind != "wide" {
			line = line[:8]
		}
		if !p.namespaces {
			line = line[1:]
		}
		lines[i] = line
	}
	return p.table.print(w, lines)
}

func (p *printer) printColumns(w io.Writer, objects []any) error {
	var lines [][]string
	if !p.noHeaders && !p.table.begun() {
		var headers []string
		for _, c := range p.columns {
			headers = append(headers, c.header)
		}
		lines = append(lines, headers)
	}
	for _, object := range objects {
		var line []string
		for _, c := range p.columns {
			value, err := c.value(object)
			if err != nil {
				return err
			}
			line = append(line, value)
		}
		lines = append(lines, line)
	}
	return p.table.print(w, lines)
}

// A table aligns columns, also of lines that are printed later, and leaves no blanks at the ends of lines.
type table struct{ widths []int }

const (
	columnGap   = 3
	columnWidth = 6 // at least, with the gap
)

func (t *table) begun() bool { return t.widths != nil }

func (t *table) print(w io.Writer, lines [][]string) error {
	for _, line := range lines {
		for i, cell := range line {
			if i == len(t.widths) {
				t.widths = append(t.widths, columnWidth)
			}
			t.widths[i] = max(t.widths[i], utf8.RuneCountInString(cell)+columnGap)
		}
	}
	var text bytes.Buffer
	for _, line := range lines {
		var b strings.Builder
		for i, cell := range line {
			fmt.Fprintf(&b, "%-*s", t.widths[i], cell)
		}
		fmt.Fprintln(&text, strings.TrimRight(b.String(), " "))
	}
	_, err := w.Write(text.Bytes())
	return err
}

// status returns what a Lease says about itself, by this machine's clock, which may differ from its holder's.
func status(s coordinationv1.LeaseSpec, now time.Time) string {
	switch {
	case holderOf(s) == "":
		return free
	case s.RenewTime == nil || s.LeaseDurationSeconds == nil:
		return held
	case now.After(expiryTime(s)):
		return expired
	}
	return held
}

// expiryTime returns when the lease expires by the times in it.
func expiryTime(s coordinationv1.LeaseSpec) time.Time {
	return s.RenewTime.Add(time.Duration(*s.LeaseDurationSeconds) * time.Second)
}

// expiry returns how long it takes until the lease expires, or how long ago it did.
func expiry(s coordinationv1.LeaseSpec, now time.Time) string {
	if holderOf(s) == "" || s.RenewTime == nil || s.LeaseDurationSeconds == nil {
		return "<none>"
	}
	left := expiryTime(s).Sub(now)
	if left < 0 {
		return duration.HumanDuration(-left) + " ago"
	}
	return "in " + duration.HumanDuration(left)
}

// manager returns who wrote the holder of a Lease, as the API server tracks it.
func manager(l coordinationv1.Lease) string {
	for _, m := range slices.Backward(l.ManagedFields) {
		if m.FieldsV1 != nil && strings.Contains(m.FieldsV1.GetRawString(), `"f:holderIdentity"`) {
			return m.Manager
		}
	}
	return ""
}

func created(l coordinationv1.Lease) *metav1.MicroTime {
	if l.CreationTimestamp.IsZero() {
		return nil
	}
	return &metav1.MicroTime{Time: l.CreationTimestamp.Time}
}

// priority returns that of the holder, if it has one.
func priority(n annotation.Notes) string {
	if !n.Prioritized {
		return ""
	}
	return strconv.Itoa(n.Priority)
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

// or returns s for a terminal, and kubectl's word for an empty value.
func or(s string) string {
	if s == "" {
		return "<none>"
	}
	return printable(s)
}

// printable returns s without characters that could control a terminal: an identity may be any text.
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
