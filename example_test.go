package leasehold_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/leasetest"
)

// In a cluster WithLease is the only option needed: the client configuration, the namespace and the identity are found
// there. The examples add an in-memory Lease API, to run anywhere.
func cluster() leasehold.Option {
	return leasehold.WithClient(leasetest.NewServer().Client("example"))
}

// Each iteration is one term of leadership. The end of the term cancels s.Context(), and the lease is released when the
// body has returned, in whatever way.
func Example() {
	ctx, shutdown := context.WithCancel(context.Background()) // in a program: signal.NotifyContext
	defer shutdown()

	reconcile := func(ctx context.Context) {
		fmt.Println("leading")
		shutdown()
		<-ctx.Done() // work that listens to its context stops in time
		fmt.Println("stopped:", context.Cause(ctx))
	}

	for s := range leasehold.Sessions(ctx,
		leasehold.WithLease("reconciler"),
		leasehold.WithNamespace("default"),
		cluster(),
	) {
		reconcile(s.Context())
	}
	fmt.Println("lease released")
	// Output:
	// leading
	// stopped: context canceled
	// lease released
}

// Of several replicas that start together, one migrates the schema. It leaves the loop when the migration is done. If
// it loses the lease before that, it starts again once it holds the lease again.
func ExampleSessions_runOnce() {
	migrate := func(ctx context.Context) error {
		fmt.Println("migrating")
		return ctx.Err()
	}

	for s := range leasehold.Sessions(context.Background(),
		leasehold.WithLease("migration"),
		leasehold.WithNamespace("default"),
		cluster(),
	) {
		if err := migrate(s.Context()); err != nil {
			continue // releases the lease, pauses so that others can take it, and campaigns again
		}
		break // releases the lease and ends the campaign
	}
	fmt.Println("done")
	// Output:
	// migrating
	// done
}

// A leader with several workers starts them in a group. Wait keeps the body, and with it the lease, until the last of
// them has stopped. A worker that fails stops the others, and the next term starts all of them again.
func ExampleSessions_workers() {
	load := func(ctx context.Context, term int) error {
		if term == 1 {
			return errors.New("connection reset")
		}
		return nil
	}
	serve := func(ctx context.Context, term int) error {
		if term == 1 {
			<-ctx.Done() // until the group or the session ends
		}
		return ctx.Err()
	}

	term := 0
	for s := range leasehold.Sessions(context.Background(),
		leasehold.WithLease("workers"),
		leasehold.WithNamespace("default"),
		leasehold.WithDuration(time.Second), // so that the next term of this example comes soon
		cluster(),
	) {
		term++
		group, ctx := errgroup.WithContext(s.Context())
		group.Go(func() error { return load(ctx, term) })
		group.Go(func() error { return serve(ctx, term) })
		err := group.Wait()
		fmt.Printf("term %d: %v\n", term, err)
		if err == nil {
			break
		}
	}
	// Output:
	// term 1: connection reset
	// term 2: <nil>
}

// WithError stores why the loop ended: nil after break and return, the cause of ctx if ctx ended it, else the error
// that made the campaign impossible. An API server that is away is no such error: the campaign retries until ctx ends.
func ExampleWithError() {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	stopped := errors.New("stopped by the operator")

	var err error
	for s := range leasehold.Sessions(ctx,
		leasehold.WithLease("reconciler"),
		leasehold.WithNamespace("default"),
		leasehold.WithError(&err),
		cluster(),
	) {
		cancel(stopped)
		<-s.Done()
		fmt.Println("session:", s.Err())
	}
	fmt.Println("loop:", err)

	for range leasehold.Sessions(context.Background(),
		leasehold.WithDuration(15*time.Second),
		leasehold.WithRenewDeadline(14*time.Second), // leaves too little for clocks to differ
		leasehold.WithError(&err),
	) {
		fmt.Println("never")
	}
	fmt.Println(err)
	// Output:
	// session: stopped by the operator
	// loop: stopped by the operator
	// leasehold: no lease: WithLease names it
	// want renew deadline (14s) <= 0.9 x duration (15s)
}

// UseExisting is for programs that may not create Leases, CreateNew for a program that must be the first. By default a
// missing Lease is created and an existing one is used.
func ExampleWithCreateMode() {
	kubernetes := cluster()
	campaign := func(mode leasehold.CreateMode) {
		var err error
		for s := range leasehold.Sessions(context.Background(),
			leasehold.WithLease("installer"),
			leasehold.WithNamespace("default"),
			leasehold.WithCreateMode(mode),
			leasehold.WithError(&err),
			kubernetes,
		) {
			fmt.Println("leading, transitions:", s.Holder().Transitions)
			break
		}
		if errors.Is(err, leasehold.ErrExists) || errors.Is(err, leasehold.ErrNotFound) {
			fmt.Println(err)
		}
	}

	campaign(leasehold.UseExisting)
	campaign(leasehold.CreateNew)
	campaign(leasehold.CreateNew)
	campaign(leasehold.UseExisting)
	// Output:
	// leasehold: lease not found: default/installer, and UseExisting does not create it
	// leading, transitions: 0
	// leasehold: lease exists: default/installer, and CreateNew wants to create it
	// leading, transitions: 1
}

// A process can be stopped for any time between a look at its lease and a write to a store. A store that refuses tokens
// smaller than the greatest that it has seen is safe from such late writes.
func ExampleSession_FencingToken() {
	var store fencedStore
	var former leasehold.Session
	terms := 0
	for s := range leasehold.Sessions(context.Background(),
		leasehold.WithLease("writer"),
		leasehold.WithNamespace("default"),
		leasehold.WithDuration(time.Second), // so that the next term of this example comes soon
		cluster(),
	) {
		if terms++; terms == 1 {
			fmt.Println("first leader: ", store.Write(s.FencingToken(), "a"))
			former = s
			continue
		}
		fmt.Println("second leader:", store.Write(s.FencingToken(), "b"))
		fmt.Println("late write:   ", store.Write(former.FencingToken(), "c"))
		break
	}
	fmt.Println("value:        ", store.value)
	// Output:
	// first leader:  <nil>
	// second leader: <nil>
	// late write:    refused: there is a newer leader
	// value:         b
}

// A fencedStore keeps a value. In a database the check is a condition of the update:
// UPDATE … SET token = $1 … WHERE token <= $1.
type fencedStore struct {
	mu    sync.Mutex
	token uint64 // the greatest seen; protected by mu
	value string // protected by mu
}

func (s *fencedStore) Write(token uint64, value string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if token < s.token {
		return errors.New("refused: there is a newer leader")
	}
	s.token, s.value = token, value
	return nil
}

// A client with a guarded transport sends nothing once the lease is released or lost, even if other code kept the
// client.
func ExampleSession_Guard() {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Println("the backend got:", r.Method, r.URL.Path)
	}))
	defer backend.Close()

	var client *http.Client
	for s := range leasehold.Sessions(context.Background(),
		leasehold.WithLease("billing"),
		leasehold.WithNamespace("default"),
		cluster(),
	) {
		client = &http.Client{Transport: s.Guard(backend.Client().Transport)}
		charge(client, backend.URL)
		break
	}
	charge(client, backend.URL)
	// Output:
	// the backend got: POST /charge
	// refused: true
}

func charge(client *http.Client, url string) {
	resp, err := client.Post(url+"/charge", "text/plain", nil)
	if err != nil {
		fmt.Println("refused:", errors.Is(err, leasehold.ErrReleased))
		return
	}
	resp.Body.Close()
}

// Code deep in a call has only a context. It finds the session there, and can ask for how long the lease is certainly
// held before it begins something that must not be interrupted.
func ExampleFromContext() {
	save := func(ctx context.Context) {
		s, ok := leasehold.FromContext(ctx)
		if !ok {
			fmt.Println("not the leader")
			return
		}
		if s.ValidFor() < time.Second {
			fmt.Println("too late to begin")
			return
		}
		fmt.Println("saving as", s.Holder().Identity)
	}

	for s := range leasehold.Sessions(context.Background(),
		leasehold.WithLease("archive"),
		leasehold.WithNamespace("default"),
		leasehold.WithIdentity("archive-0"),
		cluster(),
	) {
		ctx, cancel := context.WithTimeout(s.Context(), time.Minute) // a derived context will do
		save(ctx)
		cancel()
		break
	}
	save(context.Background())
	// Output:
	// saving as archive-0
	// not the leader
}

// Do is for a job that is one function: it waits for the lease, calls the function once, releases the lease, and
// returns what the function returned.
func ExampleDo() {
	rows, err := leasehold.Do(context.Background(), func(ctx context.Context) (int, error) {
		return 42, nil // rows compacted, by one process at a time
	},
		leasehold.WithLease("compaction"),
		leasehold.WithNamespace("default"),
		cluster(),
	)
	fmt.Println(rows, err)
	// Output: 42 <nil>
}

// TryAcquire does not wait. Its error names who holds the lease.
func ExampleTryAcquire() {
	api := cluster()
	night := []leasehold.Option{leasehold.WithLease("backup"), leasehold.WithNamespace("default"), api}

	s, err := leasehold.TryAcquire(context.Background(), append(night, leasehold.WithIdentity("monday"))...)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer s.Release() // when the work is done, also if the lease was lost

	_, err = leasehold.TryAcquire(context.Background(), append(night, leasehold.WithIdentity("tuesday"))...)
	fmt.Println(errors.Is(err, leasehold.ErrHeld), err)
	// Output: true leasehold: lease held by "monday", by another session of this process
}

// Chan turns sequences into channels, for select. A Session from a channel is released by Release. Holders tells which
// process leads, this one or another.
func ExampleChan() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	opts := []leasehold.Option{
		leasehold.WithLease("shard"), leasehold.WithNamespace("default"), leasehold.WithIdentity("worker-3"), cluster(),
	}

	sessions := leasehold.Chan(ctx, leasehold.Sessions(ctx, opts...))
	holders := leasehold.Chan(ctx, leasehold.Holders(ctx, opts...))
	flush := time.NewTicker(10 * time.Millisecond)
	defer flush.Stop()

	var leading leasehold.Session // the zero Session has ended
	var known, flushed bool
	for !known || !flushed {
		select {
		case leading = <-sessions:
		case h := <-holders:
			known = known || h.Identity == "worker-3"
		case <-flush.C:
			flushed = flushed || leading.Err() == nil
		}
	}
	fmt.Println("worker-3 flushed its shard:", leading.Release())
	// Output: worker-3 flushed its shard: <nil>
}

// Holders follows which process leads, without competing.
func ExampleHolders() {
	api := cluster()
	opts := []leasehold.Option{leasehold.WithLease("reconciler"), leasehold.WithNamespace("default"), api}
	for h := range leasehold.Holders(context.Background(), opts...) {
		switch h.Identity {
		case "":
			fmt.Println("nobody leads")
			s, err := leasehold.Acquire(context.Background(), append(opts, leasehold.WithIdentity("reconciler-0"))...)
			if err != nil {
				fmt.Println(err)
				return
			}
			defer s.Release()
		default:
			fmt.Println(h.Identity, "leads")
			return
		}
	}
	// Output:
	// nobody leads
	// reconciler-0 leads
}

// Vacate frees the lease of a process that ended without releasing it, so that others need not wait until it expires.
// Where that process still runs, its session is lost at once: it is no way to stop one.
func ExampleVacate() {
	api := cluster()
	opts := []leasehold.Option{
		leasehold.WithLease("reconciler"), leasehold.WithNamespace("default"),
		leasehold.WithIdentity("reconciler-0"), api,
	}
	s, err := leasehold.Acquire(context.Background(), opts...)
	if err != nil {
		fmt.Println(err)
		return
	}

	fmt.Println(leasehold.Vacate(context.Background(), opts...))
	fmt.Println(leasehold.Vacate(context.Background(), opts...)) // nothing is left to free

	<-s.Done() // this process still runs, and sees at once that its holder was removed
	fmt.Println(s.Release())
	// Output:
	// true <nil>
	// false <nil>
	// lease lost: its holder was removed
}

// A Monitor shows the campaigns of a process to probes and people.
func ExampleMonitor() {
	var monitor leasehold.Monitor
	admin := http.NewServeMux()
	admin.Handle("/leases", &monitor)
	admin.HandleFunc("/healthz", func(w http.ResponseWriter, req *http.Request) {
		if err := monitor.Check(req); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})

	for range leasehold.Sessions(context.Background(),
		leasehold.WithLease("reconciler"),
		leasehold.WithNamespace("default"),
		leasehold.WithMonitor(&monitor),
		cluster(),
	) {
		for _, l := range monitor.Leases() {
			fmt.Println(l.Namespace, l.Name, l.Leading, monitor.Check(nil))
		}
		break
	}
	// Output: default reconciler true <nil>
}
