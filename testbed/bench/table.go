package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// A report is all that a run found out.
type report struct {
	Start      time.Time     `json:"start"`
	Seconds    float64       `json:"seconds"`
	LoadBefore string        `json:"loadBefore"` // the machine's load averages over 1, 5 and 15 minutes
	LoadAfter  string        `json:"loadAfter"`
	Timing     string        `json:"timing"`
	Standbys   int           `json:"standbys"` // in a fleet
	Rows       []row         `json:"rows"`
	Crowds     []crowdReport `json:"crowds,omitempty"`
	Groups     []groupReport `json:"groups,omitempty"`
	WriteCPU   float64       `json:"writeCPU,omitempty"` // seconds of the server's for a conditional write
	EventCPU   float64       `json:"eventCPU,omitempty"` // seconds of the server's for a watch event
	Notes      []string      `json:"notes"`
}

// A row compares the two sides in one respect. What was not measured is nil.
type row struct {
	What      string   `json:"what"`
	Unit      string   `json:"unit"` // s, B, %, or "" for a number
	ClientGo  *summary `json:"clientGo,omitempty"`
	Leasehold *summary `json:"leasehold,omitempty"`
	Floor     *summary `json:"floor,omitempty"` // what raw requests need for the same
	Goal      string   `json:"goal,omitempty"`
	Reached   *bool    `json:"reached,omitempty"`
}

// A summary is what is said of some samples.
type summary struct {
	N       int       `json:"n"`
	P50     float64   `json:"p50"`
	P99     float64   `json:"p99"`
	Max     float64   `json:"max"`
	Samples []float64 `json:"samples"` // in the order of measurement
}

func summarize(samples ...float64) *summary {
	if len(samples) == 0 {
		return nil
	}
	sorted := slices.Sorted(slices.Values(samples))
	return &summary{len(samples), percentile(sorted, 50), percentile(sorted, 99), sorted[len(sorted)-1], samples}
}

// percentile returns the nearest-rank percentile: the least sample that at least p percent of all do not exceed. It is
// always a sample; of fewer than a hundred, the 99th is the greatest.
func percentile(sorted []float64, p float64) float64 {
	return sorted[max(1, int(math.Ceil(p/100*float64(len(sorted)))))-1]
}

// add adds a row. reached is asked only if both sides were measured.
func (r *report) add(row row, reached func() bool) {
	if reached != nil && row.ClientGo != nil && row.Leasehold != nil {
		row.Reached = new(reached())
	}
	r.Rows = append(r.Rows, row)
}

func (r *report) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

// print writes the report for people, with tables in Markdown if that is asked for.
func (r *report) print(w io.Writer, markdown bool) error {
	table := aligned
	if markdown {
		table = piped
	}
	fmt.Fprintf(w, "%s\nfleets of 1 + %d candidates; load averages %s before, %s after; %.0f s in all\n\n",
		r.Timing, r.Standbys, r.LoadBefore, r.LoadAfter, r.Seconds)
	if err := table(w, r.comparison()); err != nil {
		return err
	}
	if len(r.Crowds) > 0 {
		fmt.Fprintln(w)
		if err := table(w, r.crowds()); err != nil {
			return err
		}
	}
	if len(r.Groups) > 0 {
		fmt.Fprintln(w)
		for _, rows := range [][][]string{r.groups(), r.groupSums()} {
			if err := table(w, rows); err != nil {
				return err
			}
			fmt.Fprintln(w)
		}
	}
	for _, sums := range r.sums() {
		fmt.Fprintln(w)
		if err := table(w, sums); err != nil {
			return err
		}
	}
	for _, note := range r.Notes {
		fmt.Fprintln(w, "\n"+note)
	}
	return nil
}

// aligned writes a table, whose first row is its head, in columns.
func aligned(w io.Writer, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	return t.Flush()
}

// piped writes a table in Markdown.
func piped(w io.Writer, rows [][]string) error {
	for i, row := range rows {
		if _, err := fmt.Fprintf(w, "| %s |\n", strings.Join(row, " | ")); err != nil {
			return err
		}
		if i == 0 {
			fmt.Fprintln(w, "|"+strings.Repeat(" --- |", len(row)))
		}
	}
	return nil
}

func (r *report) comparison() [][]string {
	rows := [][]string{{
		"", "client-go p50", "p99", "n", "leasehold p50", "p99", "n", "floor p50", "client-go / leasehold",
		"leasehold / floor", "goal", "reached",
	}}
	for _, row := range r.Rows {
		cells := append([]string{row.What}, row.ClientGo.columns(row.Unit)...)
		cells = append(cells, row.Leasehold.columns(row.Unit)...)
		rows = append(rows, append(cells, row.Floor.median(row.Unit),
			ratio(row.ClientGo, row.Leasehold), ratio(row.Leasehold, row.Floor), row.Goal, verdict(row.Reached)))
	}
	return rows
}

// crowds is the table of processes that lead many leases, each beside a standby.
func (r *report) crowds() [][]string {
	rows := [][]string{{
		"leases", "D", "all led after", "goroutines each", "memory each", "resident each", "connections",
		"watches of both", "requests/s of both",
		"oldest renewal", "of", "the same, a core busy", "sessions lost", "CPU", "raw writes' CPU", "server's CPU",
	}}
	for _, c := range r.Crowds {
		busy, raw := "-", "-"
		if c.BusyOldest > 0 {
			busy = format(c.BusyOldest, "s")
		}
		if c.RawCPU > 0 {
			raw = format(c.RawCPU, "%")
		}
		rows = append(rows, []string{
			fmt.Sprint(c.Leases), c.Duration, format(c.Acquire, "s"), digits(c.Goroutines), format(c.Memory, "B"),
			format(c.Resident, "B"), fmt.Sprint(c.Sockets), digits(c.Watches),
			digits(c.Requests), format(c.Oldest, "s"), format(c.Deadline, "s"), busy, fmt.Sprint(c.Lost),
			format(c.CPU, "%"), raw, format(c.Server, "%"),
		})
	}
	return rows
}

// groups is the table of groups of several sizes.
func (r *report) groups() [][]string {
	rows := [][]string{{
		"members", "buckets", "all shared after", "writes/s", "events/s", "CPU of all", "server's CPU", "table",
		"a crash: all owned, past expiry", "writes", "one joins: its share after", "moves", "writes of the table",
	}}
	for _, g := range r.Groups {
		rows = append(rows, []string{
			fmt.Sprint(g.Members), fmt.Sprint(g.Buckets), format(g.Begin, "s"), digits(g.Writes), digits(g.Events),
			format(g.Client, "%"), format(g.Server, "%"), format(float64(g.Table), "B"), format(g.Crash, "s"),
			fmt.Sprint(g.CrashWrites), format(g.Join, "s"), fmt.Sprint(g.JoinMoves), fmt.Sprint(g.JoinWrites),
		})
	}
	return rows
}

func (s *summary) columns(unit string) []string {
	switch {
	case s == nil:
		return []string{"-", "", ""}
	case s.N == 1:
		return []string{format(s.P50, unit), "", "1"}
	}
	return []string{format(s.P50, unit), format(s.P99, unit), fmt.Sprint(s.N)}
}

func (s *summary) median(unit string) string {
	if s == nil {
		return ""
	}
	return format(s.P50, unit)
}

// ratio returns a/b of the medians. Where b is not positive, which a difference may be, there is none.
func ratio(a, b *summary) string {
	if a == nil || b == nil || b.P50 <= 0 || a.P50 <= 0 {
		return ""
	}
	return digits(a.P50 / b.P50)
}

func verdict(reached *bool) string {
	switch {
	case reached == nil:
		return ""
	case *reached:
		return "yes"
	}
	return "NO"
}

// format returns v for people, with three digits.
func format(v float64, unit string) string {
	switch size := math.Abs(v); {
	case unit == "s" && size > 0 && size < 1e-3:
		return digits(v*1e6) + " µs"
	case unit == "s" && size > 0 && size < 1:
		return digits(v*1e3) + " ms"
	case unit == "B" && size >= 1e9:
		return digits(v/1e9) + " GB"
	case unit == "B" && size >= 1e6:
		return digits(v/1e6) + " MB"
	case unit == "B" && size >= 1e3:
		return digits(v/1e3) + " kB"
	}
	return strings.TrimSpace(digits(v) + " " + unit)
}

// digits returns v with three significant digits, and no exponent.
func digits(v float64) string {
	if v == math.Trunc(v) && math.Abs(v) < 1e6 || math.Abs(v) >= 100 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.*f", 2-int(math.Floor(math.Log10(math.Abs(v)))), v)
}
