// Command demo shows what leasehold does when things go wrong: three processes compete for one Lease on a real
// Kubernetes API server while the leader is stopped, killed and frozen, the API server is away, and the Lease is
// deleted. It needs nothing but Go:
//
//	go run ./testbed/demo
//
// The candidate is in candidate.go. The exit code is 1 if a check failed.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/leasehold-go/leasehold/testbed/controlplane"
	"github.com/leasehold-go/leasehold/testbed/internal/boottime"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == candidateCommand {
		os.Exit(runCandidate(os.Args[2]))
	}
	svgFile := flag.String("svg", "", "write the last frame to `FILE` as a picture")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: go run ./testbed/demo [-svg FILE]")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	os.Exit(demo(*svgFile))
}

var errInterrupted = errors.New("interrupted")

// demo returns the exit code.
func demo(svgFile string) int {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	screen := newScreen(os.Stdout, cancel)
	defer screen.close()
	signal.Ignore(syscall.SIGPIPE) // to clean up even when standard output is closed
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		<-signals
		cancel(errInterrupted)
		<-signals
		screen.close()
		os.Exit(130) // the children end with this process
	}()

	t := newTimeline()
	logs, err := perform(ctx, t, screen)
	if t.start != 0 {
		screen.final(t)
	}
	screen.close()
	if err == nil && svgFile != "" {
		err = os.WriteFile(svgFile, draw(t, svgColumns).svg("go run ./testbed/demo"), 0o644)
	}
	switch {
	case err != nil && errors.Is(context.Cause(ctx), errInterrupted):
		fmt.Fprintln(os.Stderr, "\nInterrupted; everything is stopped.")
		return 130
	case err != nil:
		fmt.Fprintf(os.Stderr, "\n%sFailed: %v\n", logs, err)
		return 1
	}
	screen.say("\nAll checks passed in %.0f s. The candidate is the loop in testbed/demo/candidate.go.",
		(t.now - t.start).Seconds())
	return 0
}

// svgColumns is the width of the picture, enough for all of the table.
const svgColumns = 108

func newTimeline() *timeline {
	return &timeline{
		rows: []*row{{name: "amber", style: amber}, {name: "teal", style: teal}, {name: "violet", style: violet}},
		steps: []*step{
			{key: "a", event: "SIGTERM to the leader"},
			{key: "b", event: "SIGKILL to the leader"},
			{key: "c", event: "SIGSTOP to the leader"},
			{key: "d", event: fmt.Sprintf("API server away for %v", outage)},
			{key: "e", event: "Lease deleted"},
		},
		verdict: step{event: "no two sessions overlapped"},
	}
}

// perform starts the control plane, plays the show on it, and stops it. After a failure it returns the ends of the
// logs.
func perform(ctx context.Context, t *timeline, screen *screen) (logs []byte, err error) {
	screen.say(`leasehold demo: three processes, one Lease on a real API server, and five things that go wrong.

Building and starting kube-apiserver and etcd, from their Go modules, on the loopback interface.
The first build takes some minutes; after that it is a matter of seconds.`)
	server, err := startServer(ctx, screen)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	t.start = boottime.Now()
	s := &show{timeline: t, screen: screen, server: server}
	if err := s.play(ctx); err != nil {
		return bytes.Join([][]byte{tail("candidates", s.place.log, 40), tail("API server", server.Log(), 10)}, nil), err
	}
	return nil, nil
}

// startServer starts the control plane and shows for how long that has been under way.
func startServer(ctx context.Context, screen *screen) (*controlplane.Server, error) {
	type result struct {
		server *controlplane.Server
		err    error
	}
	started := make(chan result, 1)
	go func() {
		server, err := controlplane.Start(ctx, controlplane.Options{})
		started <- result{server, err}
	}()
	every := time.Second
	if !screen.live {
		every = 30 * time.Second
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for begun := time.Now(); ; {
		select {
		case r := <-started:
			if r.err == nil {
				screen.progress(fmt.Sprintf("Ready after %.0f s.\n", time.Since(begun).Seconds()))
			} else if ctx.Err() != nil {
				r.err = context.Cause(ctx)
			}
			return r.server, r.err
		case <-ticker.C:
			screen.progress(fmt.Sprintf("... %.0f s", time.Since(begun).Seconds()))
		}
	}
}

// tail returns the last lines of a file under a title.
func tail(title, file string, lines int) []byte {
	data, err := os.ReadFile(file)
	if err != nil {
		return fmt.Appendf(nil, "No log of the %s: %v\n\n", title, err)
	}
	all := bytes.Split(bytes.TrimSpace(data), []byte("\n"))
	return fmt.Appendf(nil, "The end of the log of the %s:\n%s\n\n", title,
		bytes.Join(all[max(0, len(all)-lines):], []byte("\n")))
}
