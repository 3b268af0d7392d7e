package leasectrl_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/leasectrl"
	"github.com/leasehold-go/leasehold/leasetest"
)

// A fakeManager is what Run uses of a manager.
type fakeManager struct {
	manager.Manager
	start func(context.Context) error
}

func (m fakeManager) Start(ctx context.Context) error { return m.start(ctx) }
func (fakeManager) GetHTTPClient() *http.Client       { return &http.Client{Transport: &http.Transport{}} }

func TestRun(t *testing.T) {
	broken := errors.New("broken")
	leader := func(s *leasetest.Server) string {
		if lease := s.Lease("default", "widgets"); lease != nil && lease.Spec.HolderIdentity != nil {
			return *lease.Spec.HolderIdentity
		}
		return ""
	}
	for _, test := range []struct {
		name  string
		make  error
		start func(ctx context.Context, api *leasetest.Server, term int, stop func()) error
		want  error
		terms int
	}{
		{"ctx ends", nil, func(ctx context.Context, api *leasetest.Server, _ int, stop func()) error {
			stop()
			<-ctx.Done()
			time.Sleep(time.Minute) // the controllers wind down
			if leader(api) != "a" {
				return errors.New("released before the manager returned")
			}
			return nil
		}, context.Canceled, 1},
		{"lost", nil, func(ctx context.Context, api *leasetest.Server, term int, stop func()) error {
			if term == 2 {
				stop()
			} else {
				api.Delete("default", "widgets")
			}
			<-ctx.Done()
			return context.Cause(ctx)
		}, context.Canceled, 2},
		{"no manager", broken, nil, broken, 0},
		{"manager fails", nil, func(context.Context, *leasetest.Server, int, func()) error {
			return broken
		}, broken, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				api := leasetest.NewServer()
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				terms := 0
				err := leasectrl.Run(ctx, func(s leasehold.Session) (manager.Manager, error) {
					if s.Err() != nil {
						t.Error(s.Err())
					}
					return fakeManager{start: func(ctx context.Context) error {
						terms++
						if got, ok := leasehold.FromContext(ctx); !ok || got != s {
							t.Error("the context is not the session's")
						}
						return test.start(ctx, api, terms, stop)
					}}, test.make
				}, leasehold.WithClient(api.Client("a")), leasehold.WithLease("widgets"), leasehold.WithIdentity("a"),
					leasehold.WithNamespace("default"), leasehold.WithLogger(slog.New(slog.DiscardHandler)))
				if !errors.Is(err, test.want) || terms != test.terms {
					t.Errorf("%v after %d terms, want %v after %d", err, terms, test.want, test.terms)
				}
				if holder := leader(api); holder != "" {
					t.Errorf("the lease is still held by %s", holder)
				}
			})
		})
	}
}

func TestManagerOptions(t *testing.T) {
	o := leasectrl.ManagerOptions(manager.Options{LeaderElection: true, LeaderElectionID: "widgets"})
	if o.LeaderElection || *o.GracefulShutdownTimeout >= 0 || !*o.Controller.SkipNameValidation ||
		*o.Controller.UsePriorityQueue || o.LeaderElectionID != "widgets" {
		t.Errorf("%+v", o)
	}
	o.Controller.UsePriorityQueue = new(true)
	if o = leasectrl.ManagerOptions(o); !*o.Controller.UsePriorityQueue {
		t.Error("the priority queue was asked for")
	}
}

func TestChecker(t *testing.T) {
	var check healthz.Checker = leasectrl.Checker(&leasehold.Monitor{})
	if err := check(nil); err != nil {
		t.Error(err)
	}
}

type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// A request of a reconcile is sent only while its session is valid. Others are sent.
func TestGuard(t *testing.T) {
	inFleet(t, func(f *fleet) {
		ctx, cancel := context.WithCancel(f.Context())
		ring, client := f.join(ctx, "a")
		time.Sleep(2 * time.Second)
		var sent []string
		guard := leasectrl.Guard(transport(func(req *http.Request) (*http.Response, error) {
			sent = append(sent, req.Host)
			return nil, nil
		}))
		send := func(ctx context.Context, host string) error {
			req, err := http.NewRequestWithContext(context.WithoutCancel(ctx), "GET", "http://"+host, nil)
			if err != nil {
				t.Fatal(err)
			}
			_, err = guard.RoundTrip(req)
			return err
		}
		s, leave, _ := ring.Enter("default/widget")
		if err := errors.Join(send(f.Context(), "other"), send(s.Context(), "live")); err != nil {
			t.Error(err)
		}
		client.Partition(true)
		time.Sleep(duration)
		if err := send(s.Context(), "lost"); err == nil || !strings.Contains(err.Error(), "not sent") {
			t.Errorf("error %v", err)
		}
		if want := []string{"other", "live"}; !slices.Equal(sent, want) {
			t.Errorf("sent %v, want %v", sent, want)
		}
		leave()
		cancel()
		ring.Wait()
	})
}
