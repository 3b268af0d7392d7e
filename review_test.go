package leasehold

import (
	"context"
	"io"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/leasehold-go/leasehold/leasetest"
)

func quiet() Option { return WithLogger(slog.New(slog.NewTextHandler(io.Discard, nil))) }

// candidate campaigns for default/x as name through its own client of srv.
func candidate(srv *leasetest.Server, name string, opts ...Option) []Option {
	return append([]Option{WithLease("x"), WithNamespace("default"), WithClient(srv.Client(name)), WithIdentity(name), quiet()}, opts...)
}

// A Lease deleted while its holder is cut off, and a standby whose watch brought neither the holder's
// last renewal nor the deletion: the holder still trusts its lease.
func TestReviewGhostUnseenRenewals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := leasetest.NewServer()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var a, b Session
		gotA, gotB := make(chan struct{}), make(chan struct{})
		done := make(chan struct{}, 2)
		go func() {
			for s := range Sessions(ctx, candidate(srv, "a")...) {
				a = s
				close(gotA)
				<-s.Done()
				break
			}
			done <- struct{}{}
		}()
		<-gotA
		began := time.Now()
		go func() {
			for s := range Sessions(ctx, candidate(srv, "b")...) {
				b = s
				close(gotB)
				<-s.Done()
				break
			}
			done <- struct{}{}
		}()
		time.Sleep(time.Second)
		srv.Client("b").SilenceWatches()
		time.Sleep(6500 * time.Millisecond) // a has renewed twice
		srv.Client("a").Partition(true)
		srv.Delete("default", "x")
		<-gotB
		t.Logf("b leads %v after a did; a valid for %v", time.Since(began), a.ValidFor())
		if a.Err() == nil && b.Err() == nil {
			t.Errorf("two sessions live: a for %v more", a.ValidFor())
		}
		srv.Client("a").Partition(false)
		cancel()
		<-done
		<-done
	})
}
