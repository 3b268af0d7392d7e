package leasehold_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/leasetest"
)

// The wait for the lease is bounded, the session is not. A context with a timeout would not do: it would end
// the session too, which is a child of it.
func ExampleAcquire_boundedWait() {
	api := cluster()
	backUp := func(ctx context.Context, identity string) error {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		timeout := time.AfterFunc(50*time.Millisecond, func() { cancel(errors.New("the lease is busy")) })

		s, err := leasehold.Acquire(ctx,
			leasehold.WithLease("backup"),
			leasehold.WithNamespace("default"),
			leasehold.WithIdentity(identity),
			api,
		)
		if err != nil {
			return err
		}
		defer s.Release()
		if !timeout.Stop() { // it fired at the last moment, and has ended the session
			return context.Cause(ctx)
		}

		time.Sleep(100 * time.Millisecond) // work, for longer than the wait may take
		return s.Err()
	}

	first := make(chan error, 1)
	go func() { first <- backUp(context.Background(), "monday") }()
	for h := range leasehold.Holders(context.Background(), leasehold.WithLease("backup"), leasehold.WithNamespace("default"), api) {
		if h.Identity == "monday" {
			break
		}
	}
	fmt.Println("second:", backUp(context.Background(), "tuesday"))
	fmt.Println("first:", <-first)
	// Output:
	// second: the lease is busy
	// first: <nil>
}

// Every replica accepts requests and passes them on to the leader, whose address is part of its identity.
func ExampleHolders_routeToTheLeader() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	opts := []leasehold.Option{leasehold.WithLease("api"), leasehold.WithNamespace("default"), cluster()}

	// The leader. In a pod its address is $POD_IP and the port; the random part makes the identity unique.
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		fmt.Fprintln(w, "the leader serves", req.URL.Path)
	}))
	defer backend.Close()
	identity := backend.Listener.Addr().String() + "_" + rand.Text()
	s, err := leasehold.Acquire(ctx, append(opts, leasehold.WithIdentity(identity))...)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer s.Release()

	// Any replica: it follows who leads, and forwards.
	var leader atomic.Value // of string
	known := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		var once sync.Once
		for h := range leasehold.Holders(ctx, opts...) {
			address, _, _ := strings.Cut(h.Identity, "_")
			leader.Store(address)
			once.Do(func() { close(known) })
		}
	}()
	<-known
	router := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: leader.Load().(string)}) // 502 while nobody leads
		},
		Transport: backend.Client().Transport,
	})
	defer router.Close()

	response, err := router.Client().Get(router.URL + "/orders")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer response.Body.Close()
	io.Copy(printer{}, response.Body)
	cancel()
	<-done
	// Output: the leader serves /orders
}

type printer struct{}

func (printer) Write(p []byte) (int, error) { return fmt.Print(string(p)) }

// Each shard has a lease of its own. The shards of a process that stops are taken over by the others, each as
// soon as its work has returned. Leases of one process share a connection and a watch.
func ExampleSessions_shards() {
	api := leasetest.NewServer()
	replica := func(ctx context.Context, name string, work func(ctx context.Context, shard int)) {
		var shards sync.WaitGroup
		for shard := range 4 {
			shards.Go(func() {
				for s := range leasehold.Sessions(ctx,
					leasehold.WithLease(fmt.Sprintf("shard-%d", shard)),
					leasehold.WithNamespace("default"),
					leasehold.WithClient(api.Client(name)),
				) {
					work(s.Context(), shard)
				}
			})
		}
		shards.Wait()
	}

	var owned [2]sync.WaitGroup // by replica: until it owns all shards
	owned[0].Add(4)
	owned[1].Add(4)
	run := func(ctx context.Context, n int) {
		replica(ctx, fmt.Sprint("replica-", n), func(ctx context.Context, shard int) {
			owned[n].Done()
			<-ctx.Done()
		})
	}
	ctx, shutdown := context.WithCancel(context.Background())
	first, stopFirst := context.WithCancel(ctx)

	var replicas sync.WaitGroup
	replicas.Go(func() { run(first, 0) })
	owned[0].Wait()
	fmt.Println("replica 0 owns all shards")
	replicas.Go(func() { run(ctx, 1) })
	stopFirst() // a rollout, say
	owned[1].Wait()
	fmt.Println("replica 1 owns all shards")
	shutdown()
	replicas.Wait()
	// Output:
	// replica 0 owns all shards
	// replica 1 owns all shards
}

// A program's own test: its worker must stop before another may lead, even if the API server cannot be reached.
// Time is virtual, so that the test takes milliseconds.
func TestWorkerStopsWhenCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := leasetest.NewServer()
		client := api.Client("worker-0")
		ctx, shutdown := context.WithCancel(t.Context())
		defer shutdown()

		for s := range leasehold.Sessions(ctx,
			leasehold.WithLease("worker"),
			leasehold.WithNamespace("default"),
			leasehold.WithClient(client),
		) {
			cut := time.Now()
			client.Partition(true)
			<-s.Done() // the worker under test, which gets s.Context()
			if took := time.Since(cut); took > 12*time.Second || !errors.Is(s.Err(), leasehold.ErrLost) {
				t.Errorf("stopped after %v: %v", took, s.Err())
			}
			client.Partition(false)
			shutdown()
		}
	})
}
