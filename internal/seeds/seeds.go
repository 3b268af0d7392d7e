// Package seeds plays random worlds, each made of a seed, in a process for each core: one world in virtual time keeps
// no more than one core busy, and two worlds in one process slow each other down. It is for tests.
package seeds

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// Worlds are played by one test.
type Worlds struct {
	prefix string
	seed   *uint64
	seeds  *uint64
	from   *uint64
	dur    *time.Duration
	step   *uint64
	counts []string
}

// New returns worlds that flags with the given prefix choose. In each of them, what counts names is counted.
func New(prefix string, counts ...string) *Worlds {
	return &Worlds{
		prefix: prefix,
		seed:   flag.Uint64(prefix+".seed", 0, "play this seed alone, and print what happened"),
		seeds:  flag.Uint64(prefix+".seeds", 0, "play so many seeds"),
		from:   flag.Uint64(prefix+".from", 1, "the first seed"),
		dur:    flag.Duration(prefix+".for", 0, "play seeds for so long"),
		step:   flag.Uint64(prefix+".step", 0, "play every so many-th seed, in this process alone"),
		counts: append([]string{"seeds"}, counts...),
	}
}

// From returns the first seed.
func (w *Worlds) From() uint64 { return *w.from }

// Seed returns the seed that is to be played alone, 0 if there is none.
func (w *Worlds) Seed() uint64 { return *w.seed }

// Check plays the seeds that the flags name, until t fails in one of them. play returns the counts. Without flags it
// plays so many seeds or, if that is 0, for 20 s, or 3 s with -short.
func (w *Worlds) Check(t *testing.T, seeds uint64, play func(seed uint64) []float64) {
	switch {
	case *w.seeds != 0 || *w.dur != 0:
	case seeds != 0:
		*w.seeds = seeds
	case testing.Short():
		*w.dur = 3 * time.Second
	default:
		*w.dur = 20 * time.Second
	}
	switch {
	case *w.seed != 0:
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
		t.Log(w.describe(append([]float64{1}, play(*w.seed)...)))
	case *w.step != 0:
		quiet, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		os.Stderr = quiet // where client-go logs
		w.playSome(t, play)
	default:
		w.playOnAllCores(t)
	}
}

// playOnAllCores runs a process for each core, and adds up what they count.
func (w *Worlds) playOnAllCores(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	began := time.Now()
	logged := began // protected by mu, as all
	var group errgroup.Group
	var mu sync.Mutex
	all := make([]float64, len(w.counts))
	var timeout time.Duration // none; else the processes end before this one does
	if deadline, ok := t.Deadline(); ok {
		timeout = time.Until(deadline) * 9 / 10
	}
	step := uint64(runtime.GOMAXPROCS(0))
	for i := range step {
		cmd := exec.CommandContext(ctx, exe, "-test.run=^"+t.Name()+"$",
			fmt.Sprint("-test.timeout=", timeout), fmt.Sprint("-test.short=", testing.Short()),
			fmt.Sprintf("-%s.step=%d", w.prefix, step), fmt.Sprintf("-%s.for=%v", w.prefix, *w.dur),
			fmt.Sprintf("-%s.from=%d", w.prefix, *w.from+i), fmt.Sprintf("-%s.seeds=%d", w.prefix, *w.seeds))
		group.Go(func() error {
			out := &lineWriter{each: func(line string) bool {
				text, ok := strings.CutPrefix(line, counted)
				if !ok {
					return false
				}
				more := make([]float64, len(w.counts))
				if err := json.Unmarshal([]byte(text), &more); err != nil {
					t.Errorf("%q: %v", line, err)
				}
				mu.Lock()
				defer mu.Unlock()
				add(all, more)
				if time.Since(logged) > time.Minute {
					logged = time.Now()
					t.Logf("%s, after %v", w.describe(all), time.Since(began).Round(time.Second))
				}
				return true
			}}
			cmd.Stdout, cmd.Stderr = out, out
			err := cmd.Run()
			if err != nil && ctx.Err() == nil {
				cancel() // one failure is enough
				t.Errorf("%v\n%s", err, out.rest.Bytes())
			}
			return nil
		})
	}
	group.Wait()
	took := time.Since(began)
	t.Logf("%s, from seed %d, in %v: %.1f seeds/s", w.describe(all), *w.from, took.Round(time.Second),
		all[0]/took.Seconds())
}

// counted is before the counts of some worlds on a line of output.
const counted = "counted: "

// playSome plays this process's share of the seeds, until one fails.
func (w *Worlds) playSome(t *testing.T, play func(seed uint64) []float64) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // worlds are small and many
	began := time.Now()
	printed := began
	some := make([]float64, len(w.counts)) // not printed yet
	flush := func() {
		text, _ := json.Marshal(some) // of numbers
		fmt.Printf("%s%s\n", counted, text)
		clear(some)
		printed = time.Now()
	}
	defer flush()
	for i := uint64(0); *w.seeds == 0 && time.Since(began) < *w.dur || i < *w.seeds; i += *w.step {
		seed := *w.from + i
		add(some, append([]float64{1}, play(seed)...))
		if t.Failed() {
			t.Logf("replay: go test -run '^%s$' -%s.seed=%d -v .", t.Name(), w.prefix, seed)
			return
		}
		if time.Since(printed) > time.Second {
			flush()
		}
	}
}

func add(sum, more []float64) {
	for i, n := range more {
		sum[i] += n
	}
}

func (w *Worlds) describe(counts []float64) string {
	parts := make([]string, len(counts))
	for i, n := range counts {
		parts[i] = fmt.Sprint(math.Round(n*100)/100, " ", w.counts[i])
	}
	return strings.Join(parts, ", ")
}

// A lineWriter collects the lines for which each returns false.
type lineWriter struct {
	each       func(line string) bool
	line, rest bytes.Buffer
}

func (l *lineWriter) Write(p []byte) (int, error) {
	for _, b := range p {
		l.line.WriteByte(b)
		if b == '\n' {
			if !l.each(l.line.String()) {
				l.rest.Write(l.line.Bytes())
			}
			l.line.Reset()
		}
	}
	return len(p), nil
}
