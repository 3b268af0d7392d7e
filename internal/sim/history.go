package sim

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// A line is an entry of the history.
type line struct {
	at     time.Duration
	who    string
	format string
	args   []any
	detail bool
}

const renewedLine = "renewed, version %s"

func (c *checker) note(who, format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.log(who, format, args...)
}

// detail records what is only of interest when looking closely.
func (c *checker) detail(who, format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lines = append(c.lines, line{c.world.now(), who, format, args, true})
}

func (c *checker) log(who, format string, args ...any) {
	c.lines = append(c.lines, line{c.world.now(), who, format, args, false})
}

// History returns what happened: all of it, or what led to the violation.
func (w *World) History(all bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: %d sessions in %v, %d of them lost", w.seed, w.checker.sessions, w.faultsEnd,
		w.checker.lost)
	for _, v := range w.checker.violations {
		fmt.Fprintf(&b, "\n  VIOLATION: %s", v)
	}
	for _, c := range w.candidates {
		fmt.Fprintf(&b, "\n  %v", c)
	}
	for _, e := range w.electors {
		fmt.Fprintf(&b, "\n  %v", e)
	}
	lines := w.checker.lines
	for _, f := range w.windows {
		who := "all"
		switch {
		case f.link == holderLink:
			who = "holder"
		case f.link >= 0:
			who = w.links[f.link].name
		}
		if all || len(lines) > 0 && f.from < lines[len(lines)-1].at {
			fmt.Fprintf(&b, "\n  %10.3fs to %.3fs %s: %v", f.from.Seconds(), f.to.Seconds(), who, f)
		}
	}
	if !all {
		lines = slices.DeleteFunc(slices.Clone(lines), func(l line) bool { return l.format == renewedLine })
	}
	if few := 60; !all && len(lines) > few {
		lines = lines[len(lines)-few:]
		b.WriteString("\n  ...")
	}
	for _, l := range lines {
		fmt.Fprintf(&b, "\n%16.9f %-10s %s", l.at.Seconds(), l.who, fmt.Sprintf(l.format, l.args...))
	}
	return b.String()
}

func (f faultWindow) String() string {
	return fmt.Sprintf("%v, odds %.2f, delay %v", f.kind, f.odds, f.delay)
}

// sortedHistory returns the history with the lines of one instant sorted: within one, no order is right.
func (w *World) sortedHistory() string {
	lines := strings.Split(w.History(true), "\n")
	slices.SortStableFunc(lines[len(lines)-len(w.checker.lines):], strings.Compare)
	return strings.Join(lines, "\n")
}

func firstDifference(a, b string) string {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range min(len(x), len(y)) {
		if x[i] != y[i] {
			return fmt.Sprintf("line %d\n%s\n%s", i+1, x[i], y[i])
		}
	}
	return fmt.Sprintf("%d and %d lines", len(x), len(y))
}
