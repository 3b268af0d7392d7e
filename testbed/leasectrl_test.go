package testbed_test

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"

	"github.com/leasehold-go/leasehold/internal/oracle"
	"github.com/leasehold-go/leasehold/testbed/controlplane"
	"github.com/leasehold-go/leasehold/testbed/internal/child"
)

var (
	shardedFor = flag.Duration("leasectrl.for", 0, "how long TestShardedController goes on with random faults, "+
		"after one of each")
	shardedObjects = flag.Int("leasectrl.objects", 400, "how many objects TestShardedController has")
	cachedObjects  = flag.Int("leasectrl.cached", 400, "how many objects TestShardedCaches has")
)

// replicaDuration is that of the replicas' Leases.
const replicaDuration = 5 * time.Second

// A sharded is replicas of a controller, each a process, and the ConfigMaps that they reconcile.
type sharded struct {
	*testing.T
	server  *controlplane.Server
	ns      string
	dir     string
	maps    corev1client.ConfigMapInterface
	objects int
	share   bool
	idle    bool

	started  int
	replicas []*replicaChild

	mu     sync.Mutex        // protects following
	wants  map[string]string // what the test wrote last
	seen   map[string]string // what was reconciled, by a watch, as is
	tokens map[string]uint64
	round  int
}

// A replicaChild is a process that is a replica.
type replicaChild struct {
	name   string
	cmd    *exec.Cmd
	stdin  io.Writer
	stdout *bufio.Reader
	done   chan struct{} // closed when it has ended
	err    error         // why; readable once done is closed
}

func newSharded(t *testing.T, server *controlplane.Server, objects int) *sharded {
	f := &sharded{
		T: t, server: server, ns: server.Namespace(t), dir: t.TempDir(), objects: objects,
		wants: map[string]string{}, seen: map[string]string{}, tokens: map[string]uint64{},
	}
	cfg := server.Config()
	cfg.QPS = -1
	httpClient, err := rest.HTTPClientFor(cfg)
	if err != nil {
		t.Fatal(err)
	}
	core, err := corev1client.NewForConfigAndClient(cfg, httpClient)
	if err != nil {
		t.Fatal(err)
	}
	f.maps = core.ConfigMaps(f.ns)
	t.Cleanup(httpClient.CloseIdleConnections)
	t.Cleanup(func() {
		for len(f.replicas) > 0 {
			f.kill(f.replicas[0])
		}
	})
	return f
}

// eachObject calls do for the objects from first on, several at a time.
func (f *sharded) eachObject(first, n int, do func(ctx context.Context, name string) error) {
	f.Helper()
	var g errgroup.Group
	g.SetLimit(8)
	for i := range n {
		g.Go(func() error { return do(f.Context(), fmt.Sprintf("object-%05d", (first+i)%f.objects)) })
	}
	if err := g.Wait(); err != nil {
		f.Fatal(err)
	}
}

// create makes the objects, with some data.
func (f *sharded) create(bytes int) {
	f.Helper()
	data := strings.Repeat("x", bytes)
	f.eachObject(0, f.objects, func(ctx context.Context, name string) error {
		cm := &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"want": "0", "data": data},
		}
		_, err := f.maps.Create(ctx, cm, metav1.CreateOptions{})
		f.wrote(name, "0")
		return err
	})
}

func (f *sharded) wrote(name, want string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wants[name] = want
}

// change changes n objects, from first on.
func (f *sharded) change(first, n int) {
	f.Helper()
	f.round++
	want := strconv.Itoa(f.round)
	patch := fmt.Sprintf(`{"data":{"want":"%s"}}`, want)
	f.eachObject(first, n, func(ctx context.Context, name string) error {
		_, err := f.maps.Patch(ctx, name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		f.wrote(name, want)
		return err
	})
}

// follow watches the objects: tokens of their writers never go down.
func (f *sharded) follow() {
	f.Helper()
	list, err := f.maps.List(f.Context(), metav1.ListOptions{})
	if err != nil {
		f.Fatal(err)
	}
	for i := range list.Items {
		f.note(&list.Items[i])
	}
	ctx, cancel := context.WithCancel(f.Context())
	var following sync.WaitGroup
	f.Cleanup(func() { cancel(); following.Wait() })
	version := list.ResourceVersion
	following.Go(func() {
		for ctx.Err() == nil {
			w, err := f.maps.Watch(ctx, metav1.ListOptions{ResourceVersion: version})
			if err != nil {
				continue
			}
			for event := range w.ResultChan() {
				if cm, ok := event.Object.(*corev1.ConfigMap); ok {
					version = cm.ResourceVersion
					f.note(cm)
				} else if ctx.Err() == nil {
					f.Errorf("watch: %v", event.Object)
					return
				}
			}
		}
	})
}

func (f *sharded) note(cm *corev1.ConfigMap) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen[cm.Name] = cm.Data["seen"]
	token, _ := strconv.ParseUint(cm.Data["token"], 10, 64)
	if token < f.tokens[cm.Name] {
		f.Errorf("%s: token %d after %d, by %s", cm.Name, token, f.tokens[cm.Name], cm.Data["by"])
	}
	f.tokens[cm.Name] = max(f.tokens[cm.Name], token)
}

// behind counts the objects that are not reconciled as they are, and names some.
func (f *sharded) behind() (n int, names []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, want := range f.wants {
		if f.seen[name] != want {
			if n++; n <= 5 {
				names = append(names, name)
			}
		}
	}
	return n, names
}

// awaitSeen waits until all objects are reconciled as they are.
func (f *sharded) awaitSeen(what string) {
	f.Helper()
	began := time.Now()
	for {
		n, names := f.behind()
		if n == 0 {
			break
		}
		if time.Since(began) > 2*time.Minute {
			f.Fatalf("%s: two minutes later %d of %d objects are behind: %v", what, n, f.objects, names)
		}
		time.Sleep(20 * time.Millisecond)
	}
	f.Logf("%-40s all %d objects are reconciled after %v", what, f.objects,
		time.Since(began).Round(10*time.Millisecond))
}

func (f *sharded) start() *replicaChild {
	f.Helper()
	f.started++
	c := &replicaChild{name: fmt.Sprint("replica-", f.started), done: make(chan struct{})}
	spec, err := json.Marshal(replicaSpec{
		Name: c.name, Kubeconfig: f.server.Kubeconfig(), Namespace: f.ns, Duration: replicaDuration,
		Journal: filepath.Join(f.dir, c.name), Share: f.share, Idle: f.idle,
	})
	if err != nil {
		f.Fatal(err)
	}
	c.cmd = exec.Command(os.Args[0])
	c.cmd.Env = append(os.Environ(), replicaEnv+"="+string(spec))
	log, err := os.Create(filepath.Join(f.dir, c.name+".log"))
	if err != nil {
		f.Fatal(err)
	}
	defer log.Close()
	c.cmd.Stderr = log
	stdin, err := c.cmd.StdinPipe()
	if err != nil {
		f.Fatal(err)
	}
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		f.Fatal(err)
	}
	c.stdin, c.stdout = stdin, bufio.NewReader(stdout)
	err = child.Start(c.cmd, syscall.SIGKILL, func() {
		defer close(c.done)
		c.err = c.cmd.Wait()
	})
	if err != nil {
		f.Fatal(err)
	}
	f.replicas = append(f.replicas, c)
	return c
}

func (f *sharded) signal(c *replicaChild, s os.Signal) {
	f.Helper()
	if err := c.cmd.Process.Signal(s); err != nil {
		f.Errorf("%s: %v: %v", c.name, s, err)
	}
}

// remove takes a replica out, and waits for its end.
func (f *sharded) remove(c *replicaChild) {
	<-c.done
	f.replicas = slices.DeleteFunc(f.replicas, func(other *replicaChild) bool { return other == c })
}

func (f *sharded) kill(c *replicaChild) {
	f.signal(c, syscall.SIGKILL)
	f.remove(c)
}

// stop ends a replica as a rollout does.
func (f *sharded) stop(c *replicaChild) {
	f.Helper()
	f.signal(c, syscall.SIGTERM)
	select {
	case <-c.done:
	case <-time.After(time.Minute):
		f.Errorf("%s goes on a minute after SIGTERM", c.name)
		f.signal(c, syscall.SIGQUIT) // prints its goroutines
	}
	f.remove(c)
	if c.err != nil {
		log, _ := os.ReadFile(filepath.Join(f.dir, c.name+".log"))
		f.Errorf("%s: %v\n%s", c.name, c.err, log)
	}
}

// stats asks a replica, which collects garbage before it answers if that is asked too.
func (f *sharded) stats(c *replicaChild, collect ...string) (s replicaStats) {
	f.Helper()
	if _, err := fmt.Fprintln(c.stdin, strings.Join(collect, " ")); err != nil {
		f.Fatal(err)
	}
	line, err := c.stdout.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &s)
	}
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(f.dir, c.name+".log"))
		f.Fatalf("%s: %v\n%s", c.name, err, log)
	}
	return s
}

// awaitBalance waits until the replicas own all buckets, and about as many each.
func (f *sharded) awaitBalance() {
	f.Helper()
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		sum, least, most := 0, 256, 0
		for _, c := range f.replicas {
			s := f.stats(c)
			sum += s.Owned
			least, most = min(least, s.Owned), max(most, s.Owned)
		}
		if sum == 256 && most-least <= 1 {
			return
		}
		if time.Now().After(end) {
			f.Fatalf("two minutes later the replicas own %d buckets, from %d to %d each", sum, least, most)
		}
	}
}

// A tenure is a session of a bucket: several reconciles of an object have the same.
type tenure struct {
	replica string
	token   uint64
}

// judge reads what the replicas noted: no object was reconciled by two at a time, nor with a token older than one
// before.
func (f *sharded) judge() {
	f.Helper()
	by := map[string][]reconciling{}
	replicas, writes, looks, missing := map[string]int{}, 0, 0, 0
	names, err := filepath.Glob(filepath.Join(f.dir, "replica-*[0-9]"))
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range names {
		file, err := os.Open(name)
		if err != nil {
			f.Fatal(err)
		}
		for lines := bufio.NewScanner(file); lines.Scan(); {
			var r reconciling
			if json.Unmarshal(lines.Bytes(), &r) != nil {
				continue // the last line of one that was killed
			}
			by[r.Object] = append(by[r.Object], r)
			replicas[r.Replica]++
			switch r.Want {
			case "":
				looks++
			case "NotFound":
				missing++
			default:
				writes++
			}
		}
		file.Close()
	}
	faults := 0
	judge := oracle.NewKeys(func(next *oracle.Work[tenure], fault string) {
		if faults++; faults <= 10 {
			f.Error(fault)
		}
	})
	for object, all := range by {
		slices.SortFunc(all, func(a, b reconciling) int { return cmp.Compare(a.From, b.From) })
		var now time.Duration
		for _, r := range all {
			now = r.From
			judge.Begin(&oracle.Work[tenure]{
				Key: object, Worker: r.Replica, Session: tenure{r.Replica, r.Token}, Token: r.Token, Since: r.From,
				Live: func() bool { return now < r.To },
			})
		}
	}
	if missing > 0 {
		f.Errorf("%d reconciles mistook an object for deleted", missing)
	}
	f.Logf("%d replicas: %d reconciles, %d of them wrote and %d had nothing to do; beside others or with older "+
		"tokens: %d; mistaken for deleted: %d; per replica %v", len(replicas), writes+looks+missing, writes, looks,
		faults, missing, replicas)
}

// startGated starts a control plane that shards lists and watches.
func startGated(t *testing.T) *controlplane.Server {
	t.Helper()
	s, err := controlplane.Start(t.Context(), controlplane.Options{
		NoFsync: true, FeatureGates: map[string]bool{"ShardedListAndWatch": true},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// A controller over three replicas reconciles each object, one replica at a time, through replicas that are killed,
// frozen, added and rolled, and forgets none, with a cache of everything and with one that holds the replica's share.
func TestShardedController(t *testing.T) {
	for _, share := range []bool{false, true} {
		t.Run(fmt.Sprintf("share=%v", share), func(t *testing.T) {
			t.Parallel()
			server := controlplane.ForTest(t)
			if share {
				server = startGated(t)
			}
			f := newSharded(t, server, *shardedObjects)
			f.share = share
			f.create(0)
			f.follow()
			for range 3 {
				f.start()
			}
			f.awaitSeen("three replicas start")
			f.awaitBalance()
			some := max(f.objects/5, 1)
			faults := []struct {
				name   string
				inject func()
			}{
				{"one is killed, another starts", func() {
					f.kill(f.replicas[rand.IntN(len(f.replicas))])
					f.change(rand.IntN(f.objects), some)
					f.start()
				}},
				{"one is frozen for longer than D", func() {
					c := f.replicas[rand.IntN(len(f.replicas))]
					f.change(rand.IntN(f.objects), some)
					f.signal(c, syscall.SIGSTOP)
					f.change(rand.IntN(f.objects), some)
					time.Sleep(replicaDuration * 13 / 10)
					f.change(rand.IntN(f.objects), some)
					f.signal(c, syscall.SIGCONT)
				}},
				{"one is added", func() {
					f.start()
					f.change(rand.IntN(f.objects), some)
				}},
				{"all are rolled", func() {
					for _, old := range slices.Clone(f.replicas) {
						f.change(rand.IntN(f.objects), some)
						if len(f.replicas) <= 3 {
							f.start()
						}
						f.stop(old)
					}
				}},
			}
			for _, fault := range faults {
				fault.inject()
				f.awaitSeen(fault.name)
			}
			for end := time.Now().Add(*shardedFor); time.Now().Before(end); {
				fault := faults[rand.IntN(len(faults))]
				if fault.name == "one is added" && len(f.replicas) > 4 {
					f.stop(f.replicas[0])
				}
				fault.inject()
				if rand.IntN(2) == 0 {
					f.awaitSeen(fault.name)
				}
			}
			f.change(0, f.objects)
			f.awaitSeen("each object is changed once more")
			for len(f.replicas) > 0 {
				f.stop(f.replicas[0])
			}
			f.judge()
		})
	}
}

// With the feature gate ShardedListAndWatch each of four replicas lists, watches and caches its share; on a server
// without the gate it caches its share; without a Share it caches everything.
func TestShardedCaches(t *testing.T) {
	plain, gated := controlplane.ForTest(t), startGated(t)
	for _, test := range []struct {
		name   string
		server *controlplane.Server
		share  bool
		events int64 // per change, over all replicas
	}{
		{"everything", gated, false, 4},
		{"share, no gate", plain, true, 4},
		{"share, gate", gated, true, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newSharded(t, test.server, *cachedObjects)
			f.share, f.idle = test.share, true
			f.create(1000)
			for range 4 {
				f.start()
			}
			f.awaitBalance()
			held := func() (sum int) {
				for _, c := range f.replicas {
					sum += f.stats(c).Objects
				}
				return sum
			}
			want := f.objects
			if !test.share {
				want *= 4
			}
			for end := time.Now().Add(2 * time.Minute); held() != want; time.Sleep(100 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("the caches hold %d objects, want %d", held(), want)
				}
			}
			var before int64
			for _, c := range f.replicas {
				before += f.stats(c).Events
			}
			f.change(0, f.objects)
			events := func() (sum int64) {
				for _, c := range f.replicas {
					sum += f.stats(c).Events
				}
				return sum - before
			}
			wanted := test.events * int64(f.objects)
			for end := time.Now().Add(2 * time.Minute); events() < wanted && time.Now().Before(end); {
				time.Sleep(100 * time.Millisecond)
			}
			time.Sleep(time.Second) // for those that are too many
			// A replica that the machine kept from renewing loses its share for a moment, and gets some events again.
			if n := events(); n < wanted || n > wanted+wanted/10 {
				t.Errorf("%d changes have become %d events, want %d", f.objects, n, wanted)
			}
			said := 0
			for _, c := range f.replicas {
				s := f.stats(c, "collect")
				t.Logf("%s: %d buckets; %d objects in the cache, %d listed, %d events; heap %.1f MB, RSS %.1f MB",
					c.name, s.Owned, s.Objects, s.Listed, s.Events, float64(s.Heap)/1e6, float64(s.RSS)/1e6)
				log, err := os.ReadFile(filepath.Join(f.dir, c.name+".log"))
				if err != nil {
					t.Fatal(err)
				}
				said += strings.Count(string(log), "does not shard lists and watches")
			}
			if want := map[bool]int{true: 4}[test.share && test.events > 1]; said != want {
				t.Errorf("%d lines say that the server does not shard, want %d", said, want)
			}
			for len(f.replicas) > 0 {
				f.stop(f.replicas[0])
			}
		})
	}
}
