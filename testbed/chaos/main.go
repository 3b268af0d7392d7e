// Command chaos searches for two leaders at the same time on a real Kubernetes API server. Each candidate is a
// process behind its own proxy. While the candidates campaign, chaos injects faults into networks, processes and the
// server, and edits Leases as an operator might. It needs only Go:
//
//	go run ./testbed/chaos -duration=10m
//
// The body of each leader records when it found its session live, by a clock that all processes share, and writes to
// a store, with its fencing token and without. At the end check.go checks the records: no two sessions of a lease
// were live at the same time, tokens increase, and the store accepted no write with a smaller token than an earlier
// one. Between storms of faults, and at the end, a candidate must lead. The exit code is 1 if a check fails.
//
// Some of the processes share out the keys of a group. Each key is judged as a lease is, and more strictly: its work
// goes on for a moment after the key was asked back, and no other process may begin with the key meanwhile. Between
// storms all keys must have work.
//
// The faults come from -seed: the same seed gives the same faults at the same times. Their targets depend on the
// leader at the time, so a failure may not recur.
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

// children runs the subcommands that this program starts in processes of their own. It does not return from one of
// them.
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
	flag.DurationVar(&c.duration, "duration", 3*time.Minute, "inject faults for this long, with pauses")
	flag.Uint64Var(&c.seed, "seed", uint64(time.Now().UnixNano())%1e9,
		"choose the faults by `SEED` (default a random one)")
	flag.StringVar(&c.fleet, "fleet", "all",
		"which candidates: "+strings.Join(slices.Sorted(maps.Keys(fleets)),
			" or ")+".\nThe candidates of client-go overlap; they show that the check finds it.\n"+
			crew+" has the members of a group alone")
	flag.StringVar(&c.dir, "dir", "",
		"keep data, journals and logs in `DIR` (default a temporary directory, kept after a failure)")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: go run ./testbed/chaos [flags]")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() > 0 || fleets[c.fleet] == nil || c.duration <= 0 {
		flag.Usage()
		os.Exit(2)
	}
	signal.Ignore(syscall.SIGPIPE) // clean up even if the reader of standard output is gone
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process and its children
	v, err := run(ctx, c)
	if ctx.Err() != nil {
		fmt.Fprintln(os.Stderr, "\ninterrupted; all processes are stopped")
		os.Exit(130)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
	}
	if err != nil || len(v.violations) > 0 || v.overlaps[theirsFault] > 0 && c.fleet != "all" {
		os.Exit(1)
	}
}

// A config is the settings of a run.
type config struct {
	duration   time.Duration
	seed       uint64
	fleet, dir string
	disturb    func(*harness, context.Context) // injects faults until ctx ends; returns once all are undone
	out        io.Writer
}

// silence discards the log of client-go in this process.
var silence = sync.OnceFunc(func() { klog.SetSlogLogger(slog.New(slog.DiscardHandler)) })

// run injects faults for c.duration and checks what happened. An error means that the run itself failed.
func run(ctx context.Context, c config) (v *result, err error) {
	silence()
	fmt.Fprintf(c.out, "chaos: seed %d, fleet %s, %v; the first build of kube-apiserver and etcd takes minutes\n",
		c.seed, c.fleet, c.duration)
	h := &harness{config: c, chance: rand.New(rand.NewPCG(c.seed, 0))}
	defer func() {
		keep := err != nil && ctx.Err() == nil || v != nil && len(v.violations) > 0
		err = errors.Join(err, h.close(keep))
	}()
	if err := h.open(ctx); err != nil {
		return nil, err
	}
	if err := h.disturbAndStop(ctx); err != nil && !errors.Is(err, errFailed) {
		return nil, err
	}
	v, history, err := h.check()
	if err != nil {
		return nil, err
	}
	h.report(v, history)
	return v, nil
}
