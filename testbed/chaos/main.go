// Command chaos looks for two leaders on a real Kubernetes API server. Candidates are processes of their own, each behind a
// proxy to the API server; while they campaign, networks, processes, the server and an operator do what they do in bad
// weeks. It needs Go and nothing else:
//
//	go run ./testbed/chaos -duration=10m
//
// The bodies of all leaders write down when they found their session live, by a clock that all processes share, and write
// to a store, with their fencing token and without. In the end judge.go looks at all that was written: no two sessions of a
// lease may have been live at the same time, tokens grow, and the store took no write with a token smaller than one before.
// Between the faults, and at the end, somebody must come to lead. The exit code is 1 if anything was not as it should be.
//
// The faults are drawn from -seed: the same seed draws the same faults at the same times. What they hit depends on who leads
// then, so that a failure need not come again.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"k8s.io/klog/v2"
)

// children runs what this program starts itself as, and does not return if it is that.
func children() {
	switch {
	case len(os.Args) == 3 && os.Args[1] == candidateCommand:
		os.Exit(runCandidate(os.Args[2]))
	case len(os.Args) == 2 && os.Args[1] == burnCommand:
		os.Exit(runBurner())
	}
}

func main() {
	children()
	c := config{disturb: (*harness).disturb, out: os.Stdout}
	flag.DurationVar(&c.duration, "duration", 3*time.Minute, "for how long to disturb the candidates, with pauses")
	flag.Uint64Var(&c.seed, "seed", uint64(time.Now().UnixNano())%1e9, "draw the faults from `SEED` (default a new one)")
	flag.StringVar(&c.fleet, "fleet", "all", "which candidates: "+strings.Join(slices.Sorted(maps.Keys(fleets)), " or ")+".\nThe latter are to overlap, to show that the judge sees it")
	flag.StringVar(&c.dir, "dir", "", "keep data, journals and logs in `DIR` (default a temporary directory, kept after a failure)")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: go run ./testbed/chaos [flags]")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() > 0 || fleets[c.fleet] == nil || c.duration <= 0 {
		flag.Usage()
		os.Exit(2)
	}
	signal.Ignore(syscall.SIGPIPE) // to tidy up even if nobody reads any more
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process, and the children with it
	v, err := run(ctx, c)
	if ctx.Err() != nil {
		fmt.Fprintln(os.Stderr, "\nInterrupted; everything is stopped.")
		os.Exit(130)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
	}
	if err != nil || len(v.violations) > 0 || v.overlaps[theirsFault] > 0 && c.fleet != "all" {
		os.Exit(1)
	}
}

// A config says what to do.
type config struct {
	duration   time.Duration
	seed       uint64
	fleet, dir string
	disturb    func(*harness, context.Context) // injects faults until ctx ends, and returns when all are undone
	out        io.Writer
}

// silence makes the watch that follows the leases write no log.
var silence = sync.OnceFunc(func() { klog.SetSlogLogger(slog.New(slog.DiscardHandler)) })

// run plays faults for as long as c says, and judges what happened. It returns an error if it could not.
func run(ctx context.Context, c config) (v *verdict, err error) {
	silence()
	fmt.Fprintf(c.out, "chaos: seed %d, fleet %s, %v; building and starting kube-apiserver and etcd takes minutes the first time\n", c.seed, c.fleet, c.duration)
	h := &harness{config: c, chance: rand.New(rand.NewPCG(c.seed, 0))}
	defer func() {
		keep := err != nil && ctx.Err() == nil || v != nil && len(v.violations) > 0
		err = errors.Join(err, h.close(keep))
	}()
	if err := h.open(ctx); err != nil {
		return nil, err
	}
	if err := h.play(ctx); err != nil && !errors.Is(err, errFailed) {
		return nil, err
	}
	v, history, err := h.judge()
	if err != nil {
		return nil, err
	}
	h.report(v, history)
	return v, nil
}
