package testbed_test

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/testbed/controlplane"
)

// manage runs controllers while this process leads: a manager per session.
func manage(ctx context.Context, cfg *rest.Config, namespace string, setUp func(ctrl.Manager, leasehold.Session) error,
	opts ...leasehold.Option) error {
	var ended error
	for s := range leasehold.Sessions(ctx, append(opts, leasehold.WithError(&ended))...) {
		mgr, err := ctrl.NewManager(cfg, ctrl.Options{
			LeaderElection: false, // the loop is the election
			// A manager must not return before its controllers have: the lease is released then.
			GracefulShutdownTimeout: new(time.Duration(-1)),
			// The same controller starts again in each session. Its name need not be new. The priority queue can keep
			// it from stopping (https://github.com/kubernetes-sigs/controller-runtime/issues/3538).
			Controller: config.Controller{SkipNameValidation: new(true), UsePriorityQueue: new(false)},
			// The first manager's port is free again only after it has returned, and standbys
			// have none at all: serve /metrics and /healthz outside the loop.
			Metrics:                metricsserver.Options{BindAddress: "0"},
			HealthProbeBindAddress: "0",
			Cache:                  cache.Options{DefaultNamespaces: map[string]cache.Config{namespace: {}}},
		})
		if err != nil {
			return err
		}
		if err := setUp(mgr, s); err != nil {
			return err
		}
		err = mgr.Start(s.Context())
		mgr.GetHTTPClient().CloseIdleConnections()
		if err != nil && s.Err() == nil {
			return err // not because leadership ended
		}
	}
	return ended
}

// Controllers of controller-runtime start and stop with leadership, as often as it comes and goes in one
// process, and nowhere else.
func TestControllerRuntime(t *testing.T) {
	t.Parallel()
	f := newFleet(t, controlplane.ForTest(t))
	ctrl.SetLogger(logr.Discard())
	terms := map[string]*atomic.Int64{"one": {}, "two": {}}
	run := func(name string) (quit func()) {
		setUp := func(mgr ctrl.Manager, s leasehold.Session) error {
			f.enter(s.FencingToken(), func() string {
				if s.Err() != nil {
					return ""
				}
				return name
			})
			mark := name + "-" + strconv.FormatInt(terms[name].Add(1), 10)
			return ctrl.NewControllerManagedBy(mgr).Named("marker").For(&corev1.ConfigMap{}).
				Complete(&marker{mgr.GetClient(), mark})
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- manage(ctx, f.server.Config(), f.ns, setUp,
				leasehold.WithLease(lease), leasehold.WithNamespace(f.ns), leasehold.WithIdentity(name), f.asAdmin(),
				leasehold.WithLogger(slog.New(slog.NewTextHandler(&f.log, nil))))
		}()
		return func() {
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("%s ended with %v", name, err)
			}
		}
	}
	cfg := f.server.Config()
	admin, err := client.New(cfg, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	markedBy := func(configMap, want string) {
		t.Helper()
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: f.ns, Name: configMap}}
		if err := admin.Create(t.Context(), cm); err != nil {
			t.Fatal(err)
		}
		f.await(configMap+" marked by "+want, func() bool {
			if err := admin.Get(t.Context(), client.ObjectKeyFromObject(cm), cm); err != nil {
				t.Fatal(err)
			}
			return cm.Data["by"] == want
		})
	}

	quitOne := run("one")
	markedBy("first", "one-1")
	quitTwo := run("two")
	markedBy("second", "one-1")

	// Somebody takes the lease, for a second.
	patch := `{"spec":{"holderIdentity":"thief","leaseDurationSeconds":1,"acquireTime":"2026-01-01T00:00:00.000000Z"}}`
	if _, err := f.admin.Patch(t.Context(), lease, types.MergePatchType, []byte(patch),
		metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	f.await("led again", func() bool { return f.sessions.Load() >= 2 && f.leader() != "" })

	// Whoever is left leads, more than once.
	if f.leader() == "one" {
		quitTwo()
		markedBy("third", "one-2")
		quitOne()
	} else {
		markedBy("third", "two-1")
		quitTwo()
		markedBy("fourth", "one-2")
		quitOne()
	}
}

// A marker writes who reconciles into ConfigMaps.
type marker struct {
	client.Client
	by string
}

func (m *marker) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	var cm corev1.ConfigMap
	if err := m.Get(ctx, req.NamespacedName, &cm); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if cm.Data["by"] != "" {
		return ctrl.Result{}, nil
	}
	cm.Data = map[string]string{"by": m.by}
	return ctrl.Result{}, m.Update(ctx, &cm)
}
