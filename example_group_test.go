package leasehold_test

import (
	"context"
	"fmt"
	"hash/fnv"
	"io"
	"log"
	"maps"
	"math/bits"
	"slices"
	"strconv"
	"time"

	"k8s.io/client-go/util/workqueue"

	"github.com/leasehold-go/leasehold"
)

// Each replica polls its share of the feeds. When a replica joins, feeds move to it: their sessions end with ErrMoved,
// and the new owner begins once poll has returned. When one leaves or crashes, the others have its feeds.
func ExampleSpread() {
	begun, ended := make(chan string), make(chan error)
	poll := func(s leasehold.Session, feed string) error {
		begun <- s.Holder().Identity
		for {
			select {
			case <-time.After(time.Minute): // fetch feed with s.Context(), store it with s.FencingToken()
			case <-s.Done():
				return nil // gives the feed back
			}
		}
	}
	api := cluster()
	replica := func(ctx context.Context, name string) {
		ended <- leasehold.Spread(ctx, leasehold.Keys("art", "news", "science", "sports"), poll, api,
			leasehold.WithLease("feeds"), leasehold.WithNamespace("default"), leasehold.WithIdentity(name),
			leasehold.WithRenewInterval(100*time.Millisecond)) // so that this example is quick
	}
	first, stopFirst := context.WithCancel(context.Background()) // in a program: signal.NotifyContext
	second, stopSecond := context.WithCancel(context.Background())
	go replica(first, "replica-1")
	fmt.Println(<-begun, <-begun, <-begun, <-begun)
	go replica(second, "replica-2")
	fmt.Println(<-begun, <-begun)
	stopFirst()
	fmt.Println("replica-1 has stopped:", <-ended)
	fmt.Println(<-begun, <-begun)
	stopSecond()
	fmt.Println("replica-2 has stopped:", <-ended)
	// Output:
	// replica-1 replica-1 replica-1 replica-1
	// replica-2 replica-2
	// replica-1 has stopped: context canceled
	// replica-2 replica-2
	// replica-2 has stopped: context canceled
}

// Each replica of a controller reconciles the objects whose buckets it owns. What it gains it reconciles, and what is
// another's it leaves out: that replica gains, or has gained, the bucket.
func ExampleJoin() {
	ctx, stop := context.WithCancel(context.Background()) // in a program: signal.NotifyContext
	ring, err := leasehold.Join(ctx, 64, cluster(), leasehold.WithLease("widgets"), leasehold.WithNamespace("default"),
		leasehold.WithRenewInterval(100*time.Millisecond)) // so that this example is quick
	if err != nil {
		log.Fatal(err)
	}
	widgets := []string{"default/bolt", "default/gear", "default/nut"} // in a controller: what its cache holds
	queue := workqueue.NewTyped[string]()
	go func() {
		for c := range ring.Changes() {
			for _, widget := range widgets {
				if c.Gained && ring.Owns(widget) {
					queue.Add(widget)
				}
			}
		}
		queue.ShutDown() // the ring has left
	}()
	reconciled := map[string]bool{}
	for len(reconciled) < len(widgets) {
		widget, _ := queue.Get()
		if s, leave, ok := ring.Enter(widget); ok {
			reconciled[widget] = s.Err() == nil // the work, with s.Context() and s.FencingToken()
			leave()                             // the bucket may move from now on
		}
		queue.Done(widget)
	}
	stop()
	fmt.Println(slices.Sorted(maps.Keys(reconciled)), ring.Wait())
	// Output: [default/bolt default/gear default/nut] context canceled
}

// Shares shows who owns what, to operators and dashboards, without taking part.
func ExampleShares() {
	opts := []leasehold.Option{leasehold.WithLease("feeds"), leasehold.WithNamespace("default"), cluster()}
	ctx, shutdown := context.WithCancel(context.Background())
	defer shutdown()
	begun, ended := make(chan string), make(chan error)
	go func() {
		ended <- leasehold.Spread(ctx, leasehold.Keys("art", "news"), func(s leasehold.Session, feed string) error {
			begun <- feed
			<-s.Done()
			return nil
		}, append(opts, leasehold.WithIdentity("replica-1"), leasehold.WithRenewInterval(100*time.Millisecond))...)
	}()
	<-begun
	<-begun

	for share := range leasehold.Shares(ctx, opts...) {
		for _, m := range share.Members {
			fmt.Println(m.Identity, "owns", m.Keys, "keys; nobody owns", len(share.Unowned))
		}
		for _, feed := range slices.Sorted(maps.Keys(share.Owners)) {
			fmt.Println(feed, "is polled by", share.Owners[feed])
		}
		break
	}
	shutdown()
	<-ended
	// Output:
	// replica-1 owns 2 keys; nobody owns 0
	// art is polled by replica-1
	// news is polled by replica-1
}

// bucketOf returns the bucket of a key: the part of the range of hashes that its hash falls into.
func bucketOf(key string, buckets int) int {
	h := fnv.New64a()
	io.WriteString(h, key)
	bucket, _ := bits.Mul64(h.Sum64(), uint64(buckets))
	return int(bucket)
}

// The owner of a key's bucket is the replica to ask about the key.
func ExampleShares_bucket() {
	const buckets = 64
	opts := []leasehold.Option{leasehold.WithLease("widgets"), leasehold.WithNamespace("default"), cluster()}
	ctx, shutdown := context.WithCancel(context.Background())
	defer shutdown()
	ring, err := leasehold.Join(ctx, buckets, append(opts, leasehold.WithIdentity("replica-1"),
		leasehold.WithRenewInterval(100*time.Millisecond))...) // so that this example is quick
	if err != nil {
		fmt.Println(err)
		return
	}
	for range ring.Changes() {
		break // it owns buckets
	}

	for share := range leasehold.Shares(ctx, opts...) {
		bucket := bucketOf("default/gear", buckets)
		fmt.Println("default/gear is in bucket", bucket, "of", share.Owners[strconv.Itoa(bucket)])
		break
	}
	shutdown()
	ring.Wait()
	// Output: default/gear is in bucket 4 of replica-1
}
