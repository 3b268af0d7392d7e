package leasehold_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/leasetest"
)

// The wait for the lease is bounded, the session is not. A context with a timeout would end the session too, which is a
// child of it.
func ExampleAcquire_boundedWait() {
	opts := []leasehold.Option{leasehold.WithLease("backup"), leasehold.WithNamespace("default"), cluster()}
	backUp := func(ctx context.Context, wait time.Duration) error {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		timeout := time.AfterFunc(wait, func() { cancel(errors.New("the lease is busy")) })

		s, err := leasehold.Acquire(ctx, opts...)
		if err != nil {
			return err
		}
		defer s.Release()
		if !timeout.Stop() { // it fired at the last moment, and has ended the session
			return context.Cause(ctx)
		}
		return s.Err() // the work, for as long as it takes
	}

	monday, err := leasehold.Acquire(context.Background(), opts...)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("while another holds it:", backUp(context.Background(), 10*time.Millisecond))
	monday.Release()
	fmt.Println("when it is free:", backUp(context.Background(), time.Minute))
	// Output:
	// while another holds it: the lease is busy
	// when it is free: <nil>
}

// Every replica accepts requests and passes them on to the leader, which advertises its address.
func ExampleWithAdvertise() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	opts := []leasehold.Option{leasehold.WithLease("api"), leasehold.WithNamespace("default"), cluster()}

	// The leader. In a pod its address is $POD_IP and the port.
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		fmt.Fprintln(w, "the leader serves", req.URL.Path)
	}))
	defer backend.Close()
	s, err := leasehold.Acquire(ctx, append(opts, leasehold.WithAdvertise(backend.Listener.Addr().String()))...)
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
			leader.Store(h.Address)
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

// A label on the leader's pod, by which a Service finds it, is set first and removed last in the loop body. A leader
// that is frozen or cut off keeps its label, so that two pods may have it: the handler has to look at s.Err().
func ExampleSessions_podLabel() {
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { // for the API server
		patch, _ := io.ReadAll(req.Body)
		fmt.Printf("%s %s\n", path.Base(req.URL.Path), patch)
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"apiVersion":"v1","kind":"Pod"}`)
	}))
	defer api.Close()
	client, err := corev1client.NewForConfigAndClient(&rest.Config{Host: api.URL}, api.Client())
	if err != nil {
		fmt.Println(err)
		return
	}
	label := func(ctx context.Context, role string) error {
		patch := fmt.Appendf(nil, `{"metadata":{"labels":{"role":%s}}}`, role)
		_, err := client.Pods("default").Patch(ctx, "web-0", types.MergePatchType, patch, metav1.PatchOptions{})
		return err
	}

	label(context.Background(), "null") // that of an earlier container of this pod, which was killed
	for s := range leasehold.Sessions(context.Background(), leasehold.WithLease("web"),
		leasehold.WithNamespace("default"), cluster()) {
		if err := label(s.Context(), `"leader"`); err != nil {
			continue // the next leader may have more luck
		}
		fmt.Println("serving") // until s.Done()

		// The lease is held until the body returns, so that the next leader sets its label after that.
		label(context.WithoutCancel(s.Context()), "null")
		break
	}
	// Output:
	// web-0 {"metadata":{"labels":{"role":null}}}
	// web-0 {"metadata":{"labels":{"role":"leader"}}}
	// serving
	// web-0 {"metadata":{"labels":{"role":null}}}
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

// When ctx ends, Err says so at once, but the lease is still held while the body winds down. ValidFor says for how long
// it certainly is, so that the last writes are safe too.
func ExampleSession_ValidFor() {
	ctx, shutdown := context.WithCancel(context.Background())
	defer shutdown()
	buffer := []string{"a", "b"}
	for s := range leasehold.Sessions(ctx,
		leasehold.WithLease("recorder"),
		leasehold.WithNamespace("default"),
		cluster(),
	) {
		shutdown()
		<-s.Done()
		fmt.Println("winding down:", s.Err())
		for len(buffer) > 0 && s.ValidFor() > time.Second {
			fmt.Println("flushed:", buffer[0])
			buffer = buffer[1:]
		}
	}
	// Output:
	// winding down: context canceled
	// flushed: a
	// flushed: b
}

// At most two processes work at once, each with a number of its own.
func ExampleWithSlots() {
	opts := []leasehold.Option{
		leasehold.WithLease("importer"), leasehold.WithNamespace("default"), leasehold.WithSlots(2), cluster(),
	}
	first, err := leasehold.Acquire(context.Background(), opts...)
	fmt.Println("slot", first.Slot(), err)
	second, err := leasehold.Acquire(context.Background(), opts...)
	fmt.Println("slot", second.Slot(), err)
	defer second.Release()

	_, err = leasehold.TryAcquire(context.Background(), opts...)
	fmt.Println("both are held:", errors.Is(err, leasehold.ErrHeld))

	time.AfterFunc(50*time.Millisecond, func() { first.Release() })
	third, err := leasehold.Acquire(context.Background(), opts...) // waits
	fmt.Println("slot", third.Slot(), err)
	defer third.Release()
	// Output:
	// slot 0 <nil>
	// slot 1 <nil>
	// both are held: true
	// slot 0 <nil>
}

// Of two standbys the one with the higher priority leads next. A leader with WithYield makes way for it at once.
func ExampleWithPriority() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	opts := []leasehold.Option{leasehold.WithLease("primary"), leasehold.WithNamespace("default"), cluster()}
	candidate := func(identity string, priority int) []leasehold.Option {
		return append(opts[:len(opts):len(opts)], leasehold.WithIdentity(identity),
			leasehold.WithPriority(priority), leasehold.WithYield(), leasehold.WithDuration(time.Second))
	}

	small, err := leasehold.Acquire(ctx, candidate("small-node", 1)...)
	if err != nil {
		fmt.Println(err)
		return
	}
	large := leasehold.Chan(ctx, leasehold.Sessions(ctx, candidate("large-node", 10)...))
	<-small.Done()
	fmt.Println("small-node:", small.Err())
	small.Release() // the work has ended

	s := <-large
	fmt.Println(s.Holder().Identity, "leads")
	s.Release()
	stop()
	for range large { // until the campaign has ended
	}
	// Output:
	// small-node: lease yielded: to "large-node", which has priority 10 over 1
	// large-node leads
}

// Labels of the pod decide who leads next: the zone of the database first, then the newest version. In a pod the labels
// come from a file of the downward API.
func ExampleWithPriority_labels() {
	priority := func(labels map[string]string) (p int) {
		for part := range strings.SplitSeq(labels["app.kubernetes.io/version"], ".") {
			number, _ := strconv.Atoi(part)
			p = 1000*p + number
		}
		if labels["topology.kubernetes.io/zone"] == "eu-1a" {
			p += 1_000_000_000
		}
		return p
	}
	for _, labels := range []map[string]string{
		{"topology.kubernetes.io/zone": "eu-1b", "app.kubernetes.io/version": "1.12.0"},
		{"topology.kubernetes.io/zone": "eu-1b", "app.kubernetes.io/version": "1.9.3"},
		{"topology.kubernetes.io/zone": "eu-1a", "app.kubernetes.io/version": "1.9.3"},
	} {
		s, err := leasehold.Acquire(context.Background(), leasehold.WithLease("reconciler"),
			leasehold.WithNamespace("default"), leasehold.WithPriority(priority(labels)), cluster())
		if err != nil {
			fmt.Println(err)
			return
		}
		s.Release()
		fmt.Println(priority(labels))
	}
	// Output:
	// 1012000
	// 1009003
	// 1001009003
}

// A leader hands the lease over to a candidate of its choice.
func ExampleSession_HandOver() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	opts := []leasehold.Option{leasehold.WithLease("primary"), leasehold.WithNamespace("default"), cluster()}
	campaign := func(identity string) leasehold.Session {
		s, err := leasehold.Acquire(ctx, append(opts[:len(opts):len(opts)], leasehold.WithIdentity(identity))...)
		if err != nil {
			fmt.Println(err)
		}
		return s
	}

	first := campaign("a")
	next := make(chan leasehold.Session)
	go func() { next <- campaign("b") }()
	if err := first.HandOver("b"); err != nil {
		fmt.Println(err)
	}
	s := <-next
	fmt.Println(s.Holder().Identity, "leads")
	s.Release()
	// Output: b leads
}

// A leader whose work is stuck still renews its lease, unless the work has to call Beat.
func ExampleWithBeat() {
	queue := make(chan string, 2)
	queue <- "a"
	queue <- "b"
	for s := range leasehold.Sessions(context.Background(),
		leasehold.WithLease("consumer"),
		leasehold.WithNamespace("default"),
		leasehold.WithBeat(50*time.Millisecond),
		cluster(),
	) {
		for range 2 {
			fmt.Println("handled:", <-queue)
			s.Beat()
		}
		<-s.Done() // the next message never comes
		fmt.Println(s.Err())
		break
	}
	// Output:
	// handled: a
	// handled: b
	// lease lost: the work did not call Beat for 50ms
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
