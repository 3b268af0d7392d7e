package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/pflag"
)

func watchCommand() *command {
	var s selection
	out := format("table")
	var drawn, noHeaders bool
	var lasts time.Duration
	return &command{
		name:  "watch",
		args:  "[LEASE...] [FLAGS]",
		short: "Follow who holds leases",
		long: `
It shows the state of the leases, and then each change: another holder, free, missing, or expired, which is when this
machine has not seen the holder renew the lease for its duration. Renewals are not shown. With --timeline it draws who
held the leases when.

With --group it shows the members of a group, and for each of its keys the owner and each change: moving when it was
asked back, free or expired when nobody has it. A change of a key says why. With --timeline it draws how many keys each
member owned.`,
		examples: `
leasehold watch reconciler
leasehold watch -A -l team=storage
leasehold watch reconciler --timeline
leasehold watch --group tenants --timeline

# One JSON object a line, for a minute
leasehold watch reconciler -o json --for 1m`,
		flags: func(flags *pflag.FlagSet) {
			flags.BoolVar(&drawn, "timeline", false, "draw who held the leases over time")
			flags.DurationVar(&lasts, "for", 0, "how long to watch (default until interrupted)")
			flags.TextVarP(&out, "output", "o", out, "output `format`: table, json (one object a line), yaml or name")
			flags.BoolVar(&noHeaders, "no-headers", false, "leave out the headers of the table")
			s.flags(flags)
		},
		run: func(t *tool, args []string, _ int) error {
			switch {
			case drawn && out != "table":
				return usagef("--timeline and --output %s are mutually exclusive", out)
			case lasts < 0:
				return usagef("--for %v: want a positive time", lasts)
			}
			sel, err := s.resolve(t, args)
			if err != nil {
				return err
			}
			ctx, cancel := during(lasts)
			defer cancel()
			if drawn {
				return t.watchTimeline(ctx, sel)
			}
			header := out == "table" && !noHeaders
			return sel.observe(ctx, t, func(e event) {
				if header {
					header = false
					fmt.Fprintln(t.out, changeHeader)
				}
				out.printChange(t.out, e.change)
			})
		},
	}
}

// during returns a context that ends when the tool is interrupted, or after d if that is not 0.
func during(d time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := interruptible()
	if d == 0 {
		return ctx, cancel
	}
	timed, end := context.WithTimeout(ctx, d)
	return timed, func() {
		end()
		cancel()
	}
}

const (
	changeFormat = "%-20s   %-32s   %-7s   %11s   %s\n"
)

var changeHeader = strings.TrimRight(fmt.Sprintf(changeFormat, "TIME", "LEASE", "STATUS", "TRANSITIONS", "HOLDER"),
	"\n")

// printChange prints c: a line of the table, or an object.
func (f format) printChange(w io.Writer, c change) {
	key := ""
	if c.Key != "" {
		key = " " + printable(c.Key)
	}
	switch f {
	case "name":
		fmt.Fprintln(w, resource+c.Name+key)
	case "json":
		line, _ := json.Marshal(c) // cannot fail
		fmt.Fprintf(w, "%s\n", line)
	case "yaml":
		fmt.Fprintln(w, "---")
		f.marshal(w, c)
	default:
		transitions, holder := fmt.Sprint(c.Transitions), or(c.Holder)
		if c.Key != "" {
			transitions = ""
		}
		if c.Cause != "" {
			holder += ": " + c.Cause
		}
		fmt.Fprintf(w, changeFormat, c.Time.UTC().Format(time.RFC3339), c.Namespace+"/"+c.Name+key, c.Status,
			transitions, holder)
	}
}

// watchTimeline draws the timeline every second on a terminal, else once at the end.
func (t *tool) watchTimeline(ctx context.Context, s selection) error {
	began := time.Now()
	var changes []change
	changed := make(chan change)
	failed := make(chan error, 1)
	go func() {
		failed <- s.observe(ctx, t, func(e event) {
			select {
			case changed <- e.change:
			case <-ctx.Done():
			}
		})
	}()
	screen := newScreen(t.out)
	if screen.terminal {
		t.logs = newLogWriter(screen.above(t.err))
		if err := t.openLog(); err != nil {
			return err
		}
	}
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	draw := func() {
		screen.draw(func(width int) string { return timeline(changes, began, time.Now(), width, screen.colour) })
	}
	for {
		select {
		case c := <-changed:
			changes = append(changes, c)
		case <-ticker.C:
		case err := <-failed:
			if err == nil {
				screen.last = true
				draw()
			}
			return err
		}
		draw()
	}
}

// A screen draws a picture in the place of the one before. On a file that is no terminal it draws the last one only.
type screen struct {
	w        io.Writer
	fd       int
	terminal bool
	colour   bool
	last     bool // the next picture is the last

	mu            sync.Mutex // protects following: any goroutine may log
	width, height int        // of the terminal when the picture was drawn
	lines         int        // of the picture
}

func newScreen(w io.Writer) *screen {
	s := &screen{w: w}
	if file, ok := w.(*os.File); ok {
		s.fd = int(file.Fd())
		_, _, s.terminal = terminalSize(s.fd)
	}
	s.colour = s.terminal && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	return s
}

// size returns the present number of columns and lines.
func (s *screen) size() (width, height int) {
	if s.terminal {
		if width, height, _ := terminalSize(s.fd); width > 0 && height > 0 {
			return width, height
		}
	}
	return 100, math.MaxInt
}

// Sequences that terminals have in common: ECMA-48, and DEC's private mode 7.
const (
	noWrap = "\x1b[?7l" // long lines are cut, so that each takes one row
	wrap   = "\x1b[?7h"
	upTo   = "\x1b[%dF\x1b[J" // go to the beginning of a line further up, and erase from there on
	clean  = "\x1b[H\x1b[2J"
)

// draw draws a picture of the terminal's present width. All but the last are cut to its height.
func (s *screen) draw(picture func(width int) string) {
	if !s.terminal && !s.last {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	width, height := s.size()
	lines := strings.SplitAfter(strings.TrimSuffix(picture(width), "\n"), "\n")
	if hidden := len(lines) - (height - 1); hidden > 0 && !s.last {
		lines = append(lines[:max(0, height-2)], fmt.Sprintf("… and %d more lines", hidden+1))
	}
	text := strings.Join(lines, "") + "\n"
	if s.terminal {
		text = s.erase(width, height) + noWrap + text + wrap
	}
	io.WriteString(s.w, text)
	s.width, s.height, s.lines = width, height, len(lines)
}

// erase returns the sequence that erases the picture. After a change of size nobody knows where its lines are: it
// clears all.
func (s *screen) erase(width, height int) string {
	switch {
	case s.lines == 0:
		return ""
	case width != s.width || height != s.height:
		return clean
	}
	return fmt.Sprintf(upTo, s.lines)
}

// above returns a writer to w, the same terminal, that erases the picture first: the next one follows its text.
func (s *screen) above(w io.Writer) io.Writer {
	return writerFunc(func(p []byte) (int, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		io.WriteString(s.w, s.erase(s.size()))
		s.lines = 0
		return w.Write(p)
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
