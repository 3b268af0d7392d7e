// Command bench measures leasehold and client-go's LeaderElector side by side, on the same Kubernetes API server and in
// one run, and prints one table. It needs Go and nothing else:
//
//	go run ./testbed/bench
//
// Both run as their users run them: leasehold with its defaults, client-go with 15 s, 10 s, 2 s and ReleaseOnCancel,
// each candidate with a connection of its own. The two take turns, so that whatever else the machine does meets both.
// Requests are counted by a RoundTripper, bytes by the connections, the API server's CPU time by /proc: the server is
// a process of its own, and bench runs on Linux only.
//
// What is measured, and how, is said where it is: handover.go, failover.go, herd.go, rollout.go, race.go, faults.go,
// roundtrip.go, renewal.go, steady.go, fanout.go, program.go, many.go, groups.go, growth.go.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/leasehold-go/leasehold/testbed/controlplane"
)

// experiments are run in this order.
var experiments = []struct {
	name string
	run  func(*bench) error
}{
	{"handover", (*bench).handover},
	{"failover", (*bench).failover},
	{"herd", (*bench).herd},
	{"rollout", (*bench).rollout},
	{"race", (*bench).race},
	{"blackhole", (*bench).blackHole},
	{"takeover", (*bench).takeover},
	{"roundtrip", (*bench).roundTrip},
	{"renewal", (*bench).renewal},
	{"steady", (*bench).steady},
	{"fanout", (*bench).fanout},
	{"program", (*bench).program},
	{"many", (*bench).many},
	{"groups", (*bench).groups},
	{growing, (*bench).grow},
}

// growing is an experiment that is run only if it is asked for.
const growing = "growth"

func names() []string {
	var all []string
	for _, e := range experiments {
		all = append(all, e.name)
	}
	return all
}

func main() {
	if os.Getenv(memberEnv) != "" {
		if err := runMember(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	asJSON := flag.Bool("json", false, "print JSON, with every sample")
	markdown := flag.Bool("markdown", false, "print tables in Markdown, as in docs/performance.md")
	only := flag.String("only", "", "run only these experiments, of "+strings.Join(names(), ",")+
		" (default all but "+growing+",\nwhich takes half an hour)")
	n := flag.Int("n", full.handovers, "how many handovers to measure")
	quickly := flag.Bool("quick", false,
		"under a minute: shorter leases, fewer candidates and samples, to see that it works")
	var own []crowd
	flag.Func("crowd", "instead of the usual numbers of leases of one process, measure `N,D`: N leases of duration D",
		func(s string) error {
			c, err := parseCrowd(s)
			own = append(own, c)
			return err
		})
	var groups []growth
	flag.Func("group", "instead of the usual groups of growth, measure `M,B`: M members with a ring of B buckets",
		func(s string) error {
			g, err := parseGroup(s)
			groups = append(groups, g)
			return err
		})
	svgFile := flag.String("svg", "", "draw the distributions of what took time into `FILE` too, .svg or .png")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: go run ./testbed/bench [flags]")
		flag.PrintDefaults()
	}
	flag.Parse()
	size := full
	if *quickly {
		size = quick
	}
	flag.Visit(func(f *flag.Flag) {
		if f.Name == "n" {
			size.handovers = *n
		}
	})
	if len(own) > 0 {
		size.crowds = own
	}
	if len(groups) > 0 {
		size.grown = groups
	}
	chosen, err := choose(*only)
	if err != nil || flag.NArg() > 0 || *n < 1 {
		if err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	report, err := run(ctx, size, chosen, os.Stderr)
	if report != nil {
		if *asJSON {
			err = errors.Join(err, json.NewEncoder(os.Stdout).Encode(report))
		} else {
			err = errors.Join(err, report.print(os.Stdout, *markdown))
		}
		if *svgFile != "" {
			err = errors.Join(err, report.chart(*svgFile))
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// choose returns the experiments that a list names, all but the one that takes long for the empty one.
func choose(list string) ([]string, error) {
	if list == "" {
		return slices.DeleteFunc(names(), func(name string) bool { return name == growing }), nil
	}
	chosen := strings.Split(list, ",")
	for _, name := range chosen {
		if !slices.Contains(names(), name) {
			return nil, fmt.Errorf("no experiment %q: want some of %s", name, strings.Join(names(), ","))
		}
	}
	return chosen, nil
}

// A size says how much to measure, and with which leases.
type size struct {
	timing
	handovers   int           // of a lease with one standby, by leasehold and by the floor
	polled      int           // the same by client-go, each of which takes seconds
	pairs       int           // of candidates whose leaders crash together, on each side
	crashes     int           // rounds of that
	standbys    int           // in a fleet
	herds       int           // handovers of a fleet in a row
	polledHerds int           // the same by client-go
	expiries    int           // of a fleet's lease, on each side
	rollouts    []int         // the numbers of replicas of rolling updates
	rolls       int           // of each number, for each kind of candidates
	victims     int           // leaders that meet with a fault, on each side
	hole        time.Duration // how long everything is cut off
	links       []link        // with a long round trip
	linked      time.Duration // how long to measure candidates behind them
	racers      int           // candidates that race
	learning    int           // terms that do not count
	terms       int           // that do
	solos       int           // pairs of processes whose renewals are measured, of each kind
	renewing    time.Duration // how long to measure them
	window      time.Duration // how long to measure a steady fleet
	idle        time.Duration // how long to measure the API server without one
	watchers    int           // of one Lease
	fanouts     int           // rounds with them
	fanning     time.Duration // how long to measure a fleet of that many
	weighing    time.Duration // how long a program leads before its memory is measured
	crowds      []crowd       // of leases that one process leads
	crowding    time.Duration // how long to measure one
	sharing     sharing       // of members of groups
	grown       []growth      // groups of which the growth is measured
	groupWindow time.Duration // how long to measure one that is steady
}

// farLinks are links over which leadership is hard to keep; the second is a satellite's.
var farLinks = []link{
	{1600 * time.Millisecond, 15 * time.Second}, {700 * time.Millisecond, 5 * time.Second},
	{550 * time.Millisecond, 5 * time.Second}, {300 * time.Millisecond, 2 * time.Second},
	{200 * time.Millisecond, time.Second},
}

var full = size{
	timing: defaults, handovers: 100, polled: 30, pairs: 20, crashes: 2, standbys: 99, herds: 25, polledHerds: 8,
	expiries: 2, rollouts: []int{3, 10}, rolls: 4,
	victims: 10, hole: 8 * time.Second, links: farLinks, linked: 70 * time.Second, window: time.Minute,
	idle:   12 * time.Second,
	racers: 300, learning: 20, terms: 100, solos: 8, renewing: 90 * time.Second, watchers: 900, fanouts: 3,
	fanning: 30 * time.Second, weighing: 15 * time.Second,
	crowds: []crowd{
		{count: 1, duration: defaults.duration},
		{count: 100, duration: defaults.duration},
		{count: 1000, duration: defaults.duration, moves: 3, busy: true, raw: true},
		{count: 5000, duration: 4 * defaults.duration}, // at the defaults it would take 1,700 writes per second
		{count: 20000, duration: 16 * defaults.duration},
	},
	crowding: 15 * time.Second,
	sharing:  sharing{steady: []int{1000, 10000}, buckets: 65536, keys: 10000, rollout: 10},
	grown: []growth{{ // half an hour
		buckets: []int{10, 1000, 10000, 65536}, members: []int{2, 10, 100}, rollouts: []int{100}, keys: 10000,
	}},
	groupWindow: 20 * time.Second,
}

// quick does not renew more often than once a second: candidates of client-go compare renewal times by the second, and
// would take a lease up to a second early.
var quick = size{
	timing:    timing{duration: 3 * time.Second, deadline: 2 * time.Second, period: time.Second},
	handovers: 10, polled: 5, pairs: 3, crashes: 1, standbys: 15, herds: 2, polledHerds: 2, expiries: 1,
	rollouts: []int{2}, rolls: 1,
	victims: 2, hole: 1500 * time.Millisecond, links: farLinks[3:], linked: 5 * time.Second, window: 3 * time.Second,
	idle:   time.Second,
	racers: 10, learning: 2, terms: 5, solos: 1, renewing: 3 * time.Second, watchers: 20, fanouts: 1,
	fanning: time.Second, weighing: time.Second,
	crowds: []crowd{{count: 10, duration: 3 * time.Second, moves: 1, busy: true, raw: true}}, crowding: time.Second,
	sharing: sharing{steady: []int{10, 100}, buckets: 64, keys: 100, rollout: 3},
	grown:   []growth{{buckets: []int{8}, members: []int{2}, rollouts: []int{2}, keys: 8}}, groupWindow: time.Second,
}

// A bench runs experiments.
type bench struct {
	size
	ctx      context.Context
	server   *controlplane.Server
	report   *report
	progress io.Writer
	leases   int // how many there are, for their names
}

// silence makes client-go write no log, as leasehold is told to write none.
var silence = sync.OnceFunc(func() { klog.SetSlogLogger(slog.New(slog.DiscardHandler)) })

func run(ctx context.Context, size size, chosen []string, progress io.Writer) (_ *report, err error) {
	silence()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	b := &bench{size: size, ctx: ctx, progress: progress, report: &report{
		Start: time.Now().UTC().Truncate(time.Second), LoadBefore: load(), Timing: size.String(),
		Standbys: size.standbys,
	}}
	b.say("building and starting kube-apiserver and etcd; the first build takes some minutes")
	if b.server, err = controlplane.Start(ctx, controlplane.Options{NoFsync: true}); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.server.Stop()) }()
	for _, e := range experiments {
		if !slices.Contains(chosen, e.name) {
			continue
		}
		b.say("%s", e.name)
		if err = e.run(b); err != nil {
			err = fmt.Errorf("%s: %w", e.name, err)
			break // what was measured is worth telling
		}
	}
	b.report.LoadAfter, b.report.Seconds = load(), time.Since(b.report.Start).Seconds()
	return b.report, err
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.progress, "bench: %4.0f s: %s\n", time.Since(b.report.Start).Seconds(), fmt.Sprintf(format, args...))
}

// lease returns the name of a Lease that nobody has used.
func (b *bench) lease(kind string) string {
	b.leases++
	return fmt.Sprintf("%s-%d", kind, b.leases)
}

// sleep returns an error if the run ends meanwhile.
func (b *bench) sleep(d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-b.ctx.Done():
		return context.Cause(b.ctx)
	}
}

// receive waits for what comes from c, for longer than it should take.
func receive[T any](b *bench, what string, c <-chan T) (v T, err error) {
	timeout := time.NewTimer(time.Minute)
	defer timeout.Stop()
	select {
	case v = <-c:
		return v, nil
	case <-timeout.C:
		return v, fmt.Errorf("no %s within a minute", what)
	case <-b.ctx.Done():
		return v, context.Cause(b.ctx)
	}
}
