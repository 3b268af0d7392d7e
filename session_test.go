package leasehold

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/leasehold-go/leasehold/leasetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestSmoke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := leasetest.NewServer()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var err error
		n := 0
		log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
		for s := range Sessions(ctx, WithLease("x"), WithNamespace("default"), WithClient(srv.Client("a")), WithError(&err), WithLogger(log), WithIdentity("a")) {
			t.Log(time.Now(), s.FencingToken(), s.ValidFor(), s.Err(), s.Holder())
			time.Sleep(time.Minute)
			t.Log(time.Now(), s.FencingToken(), s.ValidFor(), s.Err(), srv.Client("a").Requests())
			if n++; n == 2 {
				srv.Client("a").Partition(true)
				<-s.Done()
				t.Log(time.Now(), s.Err(), s.Context().Err())
				time.Sleep(5 * time.Second)
				srv.Client("a").Partition(false)
			}
			if n == 3 {
				cancel()
				t.Log(time.Now(), s.Err(), s.Context().Err())
			}
		}
		t.Log(err, errors.Is(err, context.Canceled), srv.Lease("default", "x").Spec)
	})
}
