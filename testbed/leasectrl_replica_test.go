package testbed_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/leasectrl"
	"github.com/leasehold-go/leasehold/testbed/internal/boottime"
)

// replicaEnv makes the test binary a replica of a sharded controller; its value is a replicaSpec.
const replicaEnv = "LEASEHOLD_TEST_REPLICA"

type replicaSpec struct {
	Name, Kubeconfig, Namespace, Journal string
	Duration                             time.Duration
	Share                                bool // the cache holds only the replica's share
	Idle                                 bool // nothing is reconciled
}

// A reconciling is what a replica's journal says of one reconcile. From and To are when its context was seen live, by
// boottime, the first time and the last: it was so all the time between.
type reconciling struct {
	Object, Replica string
	Token           uint64
	From, To        time.Duration
	Want            string // what was reconciled; empty if nothing was to do
}

// replicaStats is the answer of a replica to a line of its standard input.
type replicaStats struct {
	Objects, Owned int   // in the cache; buckets
	Listed, Events int64 // objects in lists, and events of watches
	Heap, RSS      uint64
}

type replicaProcess struct {
	replicaSpec
	client         client.Client
	mu             sync.Mutex
	journal        *json.Encoder
	listed, events atomic.Int64
	ring           *leasehold.Ring
	monitor        leasehold.Monitor
}

// runReplica is the main function of a replica.
func runReplica(arg string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	ctrl.SetLogger(logr.FromSlogHandler(slog.NewTextHandler(os.Stderr, nil)))
	r := &replicaProcess{}
	err := json.Unmarshal([]byte(arg), &r.replicaSpec)
	if err == nil {
		err = r.run(ctx)
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, r.Name, err)
		return 1
	}
	return 0
}

func (r *replicaProcess) run(ctx context.Context) error {
	journal, err := os.OpenFile(r.Journal, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	r.journal = json.NewEncoder(journal)
	cfg, err := clientcmd.BuildConfigFromFlags("", r.Kubeconfig)
	if err != nil {
		return err
	}
	r.ring, err = leasehold.Join(ctx, 256, leasehold.WithRESTConfig(rest.CopyConfig(cfg)),
		leasehold.WithLease("configmaps"), leasehold.WithNamespace(r.Namespace),
		leasehold.WithIdentity(r.Name), leasehold.WithDuration(r.Duration),
		leasehold.WithMonitor(&r.monitor), leasehold.WithLogger(slog.New(slog.NewTextHandler(os.Stderr,
			&slog.HandlerOptions{Level: slog.LevelWarn})).With("replica", r.Name)))
	if err != nil {
		return err
	}
	cfg.QPS = -1
	cfg.Wrap(leasectrl.Guard)
	newInformer := toolscache.NewSharedIndexInformer
	opts := []leasectrl.Option{leasectrl.WithKey(leasectrl.Hashed(leasectrl.NamespacedName))}
	if r.Share {
		share, err := leasectrl.NewShare(r.ring, leasectrl.ByUID, &corev1.ConfigMap{})
		if err != nil {
			return err
		}
		newInformer = share.NewInformer
		opts = append(opts, leasectrl.WithShare(share))
	}
	mgr, err := ctrl.NewManager(cfg, leasectrl.ManagerOptions(ctrl.Options{
		Cache: cache.Options{
			DefaultNamespaces: map[string]cache.Config{r.Namespace: {}},
			NewInformer: func(lw toolscache.ListerWatcher, object kruntime.Object, resync time.Duration,
				indexers toolscache.Indexers) toolscache.SharedIndexInformer {
				return newInformer(r.counted(lw), object, resync, indexers)
			},
		},
		Metrics: metricsserver.Options{BindAddress: "0"}, HealthProbeBindAddress: "0",
	}))
	if err != nil {
		return err
	}
	r.client = mgr.GetClient()
	err = ctrl.NewControllerManagedBy(mgr).For(&corev1.ConfigMap{}).
		WithOptions(controller.Options{MaxConcurrentReconciles: 8}).
		WatchesRawSource(leasectrl.Source(r.ring, leasectrl.List(mgr.GetCache(), &corev1.ConfigMapList{}), opts...)).
		Complete(leasectrl.Reconciler(r.ring, r, opts...))
	if err != nil {
		return err
	}
	// The manager ends when the ring does, and the other way round.
	err = mgr.Add(manager.RunnableFunc(func(context.Context) error { return r.ring.Wait() }))
	if err != nil {
		return err
	}
	go r.answer(mgr.GetCache())
	return mgr.Start(ctx)
}

// Reconcile writes what an object wants into it, after a while.
func (r *replicaProcess) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	if r.Idle {
		return ctrl.Result{}, nil
	}
	s, _ := leasehold.FromContext(ctx)
	note := reconciling{Object: req.Name, Replica: r.Name, Token: s.FencingToken()}
	look := func() bool {
		before := boottime.Now()
		if ctx.Err() != nil {
			return false
		}
		if note.To = before; note.From == 0 {
			note.From = boottime.Now()
		}
		return true
	}
	defer func() {
		if look(); note.To > note.From {
			r.mu.Lock()
			defer r.mu.Unlock()
			if err := r.journal.Encode(note); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1) // the journal would be incomplete
			}
		}
	}()
	if !look() {
		return ctrl.Result{}, ctx.Err()
	}
	var cm corev1.ConfigMap
	if err := r.client.Get(ctx, req.NamespacedName, &cm); err != nil {
		if apierrors.IsNotFound(err) {
			note.Want = "NotFound" // none is deleted in the test
		}
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if cm.Data["want"] == cm.Data["seen"] {
		return ctrl.Result{}, nil
	}
	time.Sleep(time.Duration(rand.IntN(10)) * time.Millisecond)
	if !look() {
		return ctrl.Result{}, ctx.Err()
	}
	cm.Data["seen"], cm.Data["by"] = cm.Data["want"], r.Name
	cm.Data["token"] = strconv.FormatUint(s.FencingToken(), 10)
	err := r.client.Update(ctx, &cm)
	if err == nil {
		note.Want = cm.Data["want"]
	}
	if apierrors.IsConflict(err) {
		return ctrl.Result{RequeueAfter: 10 * time.Millisecond}, nil // the cache is behind
	}
	return ctrl.Result{}, err
}

// counted counts what a list and a watch bring.
func (r *replicaProcess) counted(lw toolscache.ListerWatcher) toolscache.ListerWatcher {
	inner := toolscache.ToListerWatcherWithContext(lw)
	return &toolscache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, opts metav1.ListOptions) (kruntime.Object, error) {
			list, err := inner.ListWithContext(ctx, opts)
			if configMaps, ok := list.(*corev1.ConfigMapList); ok && err == nil {
				r.listed.Add(int64(len(configMaps.Items)))
			}
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
			w, err := inner.WatchWithContext(ctx, opts)
			if err != nil {
				return nil, err
			}
			return watch.Filter(w, func(event watch.Event) (watch.Event, bool) {
				if event.Type != watch.Bookmark {
					r.events.Add(1)
				}
				return event, true
			}), nil
		},
	}
}

// answer writes stats for each line of standard input, after a garbage collection where that says "collect". The
// process exits at its end: the test is gone.
func (r *replicaProcess) answer(reader client.Reader) {
	answers := json.NewEncoder(os.Stdout)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var list corev1.ConfigMapList
		_ = reader.List(context.Background(), &list, client.UnsafeDisableDeepCopy) // fails until the cache has begun
		s := replicaStats{Objects: len(list.Items), Listed: r.listed.Load(), Events: r.events.Load()}
		list = corev1.ConfigMapList{}
		for _, g := range r.monitor.Groups() {
			s.Owned = g.Owned
		}
		if lines.Text() == "collect" {
			debug.FreeOSMemory()
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		s.Heap = m.HeapAlloc
		if status, err := os.ReadFile("/proc/self/status"); err == nil {
			_, rest, _ := strings.Cut(string(status), "VmRSS:")
			kb, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
			n, _ := strconv.ParseUint(kb, 10, 64)
			s.RSS = n << 10
		}
		if err := answers.Encode(s); err != nil {
			break
		}
	}
	os.Exit(1)
}
