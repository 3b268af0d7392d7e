// Command demo shows what leasehold does when things go wrong, on a real Kubernetes API server. In the first scene
// three processes compete for one Lease while the leader is stopped, killed and frozen, the API server is away, and the
// Lease is deleted. In the second, four processes share out sixteen keys while one of them is killed, another joins,
// and one is replaced. It needs nothing but Go:
//
//	go run ./testbed/demo
//
// The candidate is in candidate.go, the member in member.go. The exit code is 1 if a check failed.
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
)

func main() {
	if len(os.Args) == 3 && (os.Args[1] == candidateCommand || os.Args[1] == memberCommand) {
		os.Exit(runProcess(os.Args[1], os.Args[2]))
	}
	svgFile := flag.String("svg", "", "write the last frames to `FILE` as a picture")
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

	played, logs, err := perform(ctx, screen)
	screen.final(played)
	if err == nil && svgFile != "" {
		err = os.WriteFile(svgFile, drawAll(played, svgColumns).svg("go run ./testbed/demo"), 0o644)
	}
	switch {
	case err != nil && errors.Is(context.Cause(ctx), errInterrupted):
		fmt.Fprintln(os.Stderr, "\nInterrupted; everything is stopped.")
		return 130
	case err != nil:
		fmt.Fprintf(os.Stderr, "\n%sFailed: %v\n", logs, err)
		return 1
	}
	var took time.Duration
	for _, t := range played {
		took += t.now - t.start
	}
	screen.say("\nAll checks passed in %.0f s. The programs are the loop in testbed/demo/candidate.go, and the call\n"+
		"in testbed/demo/member.go.", took.Seconds())
	return 0
}

// svgColumns is the width of the picture, enough for all of the table.
const svgColumns = 108

// perform starts the control plane, plays the scenes on it, and stops it. It returns the scenes that have begun and,
// after a failure, the ends of the logs.
func perform(ctx context.Context, screen *screen) (played []*timeline, logs []byte, err error) {
	screen.say(`leasehold demo on a real API server: three processes that compete for one Lease, and five things that go
wrong; then four that share out sixteen keys, of which one is killed, one joins, and one is replaced.

Building and starting kube-apiserver and etcd, from their Go modules, on the loopback interface.
The first build takes some minutes; after that it is a matter of seconds.`)
	server, err := startServer(ctx, screen)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	for _, t := range []*timeline{newElection(), newSharing()} {
		s, err := newScene(t, screen, server)
		if err != nil {
			return played, nil, err
		}
		played = append(played, t)
		if err := s.perform(ctx); err != nil {
			return played, bytes.Join([][]byte{tail("processes", s.place.log, 40),
				tail("API server", server.Log(), 10)}, nil), err
		}
	}
	return played, nil, nil
}

// startServer starts the control plane and shows for how long that has been under way.
func startServer(ctx context.Context, screen *screen) (*controlplane.Server, error) {
	type result struct {
		server *controlplane.Server
		err    error
	}
	started := make(chan result, 1)
	go func() {
		server, err := controlplane.Start(ctx, controlplane.Options{NoFsync: true})
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
