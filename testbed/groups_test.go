package testbed_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	rbacv1client "k8s.io/client-go/kubernetes/typed/rbac/v1"
	"k8s.io/client-go/rest"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/internal/oracle"
	"github.com/leasehold-go/leasehold/testbed/controlplane"
	"github.com/leasehold-go/leasehold/testbed/internal/proxy"
)

const (
	group      = "tenants"
	groupLabel = "leasehold-go.github.io/group"
	groupTable = "leasehold-go.github.io/table"
)

// A keyFleet is the members of a group on the real API server. A judge watches over the exclusion of each key, and over
// the order of its tokens.
type keyFleet struct {
	*fleet
	judge  *oracle.Keys[leasehold.Session]
	began  time.Time
	starts atomic.Int64
}

func newKeyFleet(f *fleet) *keyFleet {
	return &keyFleet{
		fleet: f, began: time.Now(),
		judge: oracle.NewKeys(func(_ *oracle.Work[leasehold.Session], fault string) { f.Error(fault) }),
	}
}

// begin says that a member has s, a session of key.
func (f *keyFleet) begin(s leasehold.Session, key, member string) {
	f.judge.Begin(&oracle.Work[leasehold.Session]{
		Key: key, Worker: member, Session: s, Token: s.FencingToken(), Since: time.Since(f.began),
		Live: func() bool { return s.ValidFor() > 0 },
	})
	f.starts.Add(1)
}

// shape says how many keys each member has.
func (f *keyFleet) shape() string {
	owned := map[string]int{}
	for _, w := range f.judge.Live() {
		if w.Session.Err() == nil {
			owned[w.Worker]++
		}
	}
	return fmt.Sprint(owned)
}

func (f *keyFleet) awaitShape(want string) {
	f.Helper()
	began := time.Now()
	for end := began.Add(time.Minute); f.shape() != want; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			f.Fatalf("a minute later: shared out as %s, want %s", f.shape(), want)
		}
	}
	f.Logf("shared out as %s after %v", want, time.Since(began).Round(time.Millisecond))
}

// groupOptions are those of a member with a duration of 5 s.
func (f *keyFleet) groupOptions(member string, opts ...leasehold.Option) []leasehold.Option {
	return append([]leasehold.Option{
		leasehold.WithLease(group), leasehold.WithNamespace(f.ns), leasehold.WithIdentity(member),
		leasehold.WithDuration(5 * time.Second), leasehold.WithLogger(f.logger()), f.asAdmin(),
	}, opts...)
}

// spread starts a member whose work goes on until its session ends, and a moment more.
func (f *keyFleet) spread(member string, keys []string, opts ...leasehold.Option) *candidate {
	ctx, cancel := context.WithCancel(f.Context())
	c := &candidate{stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.err = leasehold.Spread(ctx, leasehold.Keys(keys...), func(s leasehold.Session, key string) error {
			f.begin(s, key, member)
			<-s.Done()
			time.Sleep(20 * time.Millisecond)
			return nil
		}, f.groupOptions(member, opts...)...)
	}()
	f.Cleanup(c.quit)
	return c
}

func keys(n int) (names []string) {
	for i := range n {
		names = append(names, fmt.Sprintf("tenant-%02d", i))
	}
	return names
}

// via connects as the admin over a network that may fail.
func (f *keyFleet) via(network *proxy.Proxy) leasehold.Option {
	cfg := f.server.Config()
	cfg.Host = "https://" + network.Addr
	return leasehold.WithRESTConfig(cfg)
}

// Members that join, leave and are cut off share out keys. Nobody polls, and a member's lists and its watch are of the
// group alone, but for one before the first table gives keys.
func TestSpread(t *testing.T) {
	t.Parallel()
	f := newKeyFleet(newFleet(t, controlplane.ForTest(t)))
	requests := &groupRequests{}
	cfg := f.server.Config()
	cfg.Wrap(requests.wrap)
	f.spread("a", keys(12), leasehold.WithRESTConfig(cfg))
	f.awaitShape("map[a:12]")
	network := newProxy(t, f.server)
	b := f.spread("b", keys(12), f.via(network))
	f.awaitShape("map[a:6 b:6]")
	c := f.spread("c", keys(12))
	f.awaitShape("map[a:4 b:4 c:4]")
	c.quit()
	f.awaitShape("map[a:6 b:6]")
	network.Set(proxy.Rule{Drop: true}, proxy.Rule{Drop: true})
	f.awaitShape("map[a:12]") // once b was not seen to renew
	network.Set(proxy.Rule{}, proxy.Rule{})
	network.Reset()
	f.awaitShape("map[a:6 b:6]")
	b.quit()
	f.awaitShape("map[a:12]")
	if b.err != context.Canceled || c.err != context.Canceled {
		t.Errorf("ended with %v and %v", b.err, c.err)
	}
	if n := f.starts.Load(); n > 12+6+4+4+12+6+6 {
		t.Errorf("work began %d times", n)
	}
	if lists, watches := requests.lists.Load(), requests.watches.Load(); lists > 20 || watches == 0 {
		t.Errorf("%d lists and %d watches of the group", lists, watches)
	}
	if n := requests.wide.Load(); n > 1 {
		t.Errorf("%d lists and watches of all Leases, want at most one list", n)
	}
}

// groupRequests counts lists and watches.
type groupRequests struct{ lists, watches, wide atomic.Int64 }

func (r *groupRequests) wrap(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(req *http.Request) (*http.Response, error) {
		query := req.URL.Query()
		switch {
		case req.Method != http.MethodGet || !strings.HasSuffix(req.URL.Path, "/leases"):
		case query.Get("fieldSelector") != "":
		case query.Get("labelSelector") != groupLabel+"="+group:
			r.wide.Add(1)
		case query.Get("watch") != "":
			r.watches.Add(1)
		default:
			r.lists.Add(1)
		}
		return next.RoundTrip(req)
	})
}

// The table is edited, deleted and filled with rubbish, and a member's Lease too. All work ends before it is given out
// again.
func TestSpreadSabotage(t *testing.T) {
	t.Parallel()
	f := newKeyFleet(newFleet(t, controlplane.ForTest(t)))
	for _, member := range []string{"a", "b", "c"} {
		f.spread(member, keys(12))
	}
	f.awaitShape("map[a:4 b:4 c:4]")
	patch := func(name, body string) {
		t.Helper()
		if _, err := f.admin.Patch(t.Context(), name, types.MergePatchType, []byte(body),
			metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	var earlier string
	for _, sabotage := range []struct {
		name string
		do   func()
	}{
		{"rubbish", func() { patch(group, `{"metadata":{"annotations":{"`+groupTable+`":"rubbish"}}}`) }},
		{"no annotation", func() { patch(group, `{"metadata":{"annotations":null}}`) }},
		{"deleted", func() {
			if err := f.admin.Delete(t.Context(), group, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}},
		{"an earlier table", func() {
			patch(group, fmt.Sprintf(`{"metadata":{"annotations":{"%s":%q}}}`, groupTable, earlier))
		}},
	} {
		l, err := f.admin.Get(t.Context(), group, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		before := l.Annotations[groupTable]
		starts := f.starts.Load()
		sabotage.do()
		f.await(sabotage.name+": all given out again", func() bool { return f.starts.Load() >= starts+12 })
		f.awaitShape("map[a:4 b:4 c:4]")
		earlier = before
	}
}

// A member whose Lease loses the label of the group goes on, and keeps others from what it owns, or loses it first.
func TestSpreadWithoutLabel(t *testing.T) {
	t.Parallel()
	f := newKeyFleet(newFleet(t, controlplane.ForTest(t)))
	for _, member := range []string{"a", "b", "c"} {
		f.spread(member, keys(12))
	}
	f.awaitShape("map[a:4 b:4 c:4]")
	list, err := f.admin.List(t.Context(), metav1.ListOptions{LabelSelector: groupLabel + "=" + group})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range list.Items {
		if !strings.HasPrefix(l.Name, group+"-m-") {
			continue
		}
		if _, err := f.admin.Patch(t.Context(), l.Name, types.MergePatchType,
			[]byte(`{"metadata":{"labels":{"`+groupLabel+`":null}}}`), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(7 * time.Second) // longer than a Lease is missing before its keys are given to others
		f.awaitShape("map[a:4 b:4 c:4]")
	}
}

// The members of a ring own its buckets, and nobody enters a bucket while another is in it.
func TestRing(t *testing.T) {
	t.Parallel()
	f := newKeyFleet(newFleet(t, controlplane.ForTest(t)))
	const buckets = 64
	inside := make([]atomic.Int64, 500)
	var entered atomic.Int64
	join := func(member string) func() {
		ctx, cancel := context.WithCancel(f.Context())
		r, err := leasehold.Join(ctx, buckets, f.groupOptions(member)...)
		if err != nil {
			t.Fatal(err)
		}
		var loops sync.WaitGroup
		loops.Go(func() {
			for c := range r.Changes() {
				if c.Gained {
					f.begin(c.Session, fmt.Sprint(c.Bucket), member)
				} else if c.Session.Err() == nil {
					t.Errorf("%s gave up bucket %d, and its session is live", member, c.Bucket)
				}
			}
		})
		loops.Go(func() {
			for ctx.Err() == nil {
				i := rand.IntN(len(inside))
				s, leave, ok := r.Enter(fmt.Sprint("object-", i))
				if ok {
					if n := inside[i].Add(1); n != 1 && s.Err() == nil {
						t.Errorf("%s entered object-%d, and another is inside", member, i)
					}
					entered.Add(1)
					time.Sleep(time.Millisecond)
					inside[i].Add(-1)
				}
				leave()
				time.Sleep(time.Millisecond)
			}
		})
		return func() {
			cancel()
			if err := r.Wait(); err != context.Canceled {
				t.Errorf("%s ended: %v", member, err)
			}
			loops.Wait()
			if s := r.Selector("object.metadata.uid"); strings.Count(s, "shardRange") != 1 || r.Owns("object-1") {
				t.Errorf("%s has left; its selector is %s", member, s)
			}
		}
	}
	a := join("a")
	f.awaitShape("map[a:64]")
	b := join("b")
	f.awaitShape("map[a:32 b:32]")
	c := join("c")
	f.await("shared among three", func() bool {
		return slices.Contains([]string{"map[a:22 b:21 c:21]", "map[a:21 b:22 c:21]", "map[a:21 b:21 c:22]"}, f.shape())
	})
	before := entered.Load()
	f.await("entered", func() bool { return entered.Load() > before+100 })
	a()
	f.awaitShape("map[b:32 c:32]")
	b()
	f.awaitShape("map[c:64]")
	c()
	f.awaitShape("map[]")
}

// Shares shows a group that begins, its members, and their leaving.
func TestShares(t *testing.T) {
	t.Parallel()
	f := newKeyFleet(newFleet(t, controlplane.ForTest(t)))
	var mu sync.Mutex
	var newest leasehold.Share
	var yielded int
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	var end error
	go func() {
		defer close(done)
		for s := range leasehold.Shares(ctx, f.groupOptions("watcher", leasehold.WithError(&end))...) {
			mu.Lock()
			newest, yielded = s, yielded+1
			mu.Unlock()
		}
	}()
	await := func(want string) {
		t.Helper()
		f.await("seen: "+want, func() bool {
			mu.Lock()
			defer mu.Unlock()
			owned := map[string]int{}
			for _, who := range newest.Owners {
				owned[who]++
			}
			members := map[string]int{}
			for _, m := range newest.Members {
				members[m.Identity] = m.Keys
			}
			return yielded > 0 && fmt.Sprint(owned, members, newest.Unowned) == want
		})
	}
	await("map[] map[] []")
	a := f.spread("a", keys(10))
	await("map[a:10] map[a:10] []")
	b := f.spread("b", keys(10))
	await("map[a:5 b:5] map[a:5 b:5] []")
	a.quit()
	await("map[b:10] map[b:10] []")
	b.quit()
	cancel()
	<-done
	if end != context.Canceled {
		t.Errorf("ended: %v", end)
	}
}

// The tool shows who owns what.
func TestSharesCommand(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	f := newKeyFleet(c.fleet)
	none := c.start("shares", group)
	none.wantCode(1)
	if !strings.Contains(none.stderr.String(), "no lease "+c.ns+"/"+group) {
		t.Errorf("without a group: %s", none.stderr.String())
	}
	watching := c.start("shares", group, "-w", "-o", "json")
	f.await("a group that nobody has begun", func() bool {
		return strings.Contains(watching.stdout.String(), `"members":[]`)
	})
	f.spread("a", keys(4))
	f.awaitShape("map[a:4]")
	f.spread("b", keys(4))
	f.awaitShape("map[a:2 b:2]")
	table := c.start("shares", group)
	table.wantCode(0)
	if got := strings.Fields(table.stdout.String()); len(got) != 12 ||
		!slices.Equal(got[:7], []string{"MEMBER", "WEIGHT", "KEYS", "SINCE", "a", "1", "2"}) ||
		!slices.Equal(got[8:11], []string{"b", "1", "2"}) {
		t.Errorf("table:\n%s", table.stdout.String())
	}
	owned := c.start("shares", group, "--keys")
	owned.wantCode(0)
	if n := strings.Count(owned.stdout.String(), "tenant-"); n != 4 {
		t.Errorf("with %d keys:\n%s", n, owned.stdout.String())
	}
	f.await("watched", func() bool {
		lines := strings.Split(strings.TrimSpace(watching.stdout.String()), "\n")
		return strings.Contains(lines[len(lines)-1], `"identity":"b"`)
	})
	watching.signal(syscall.SIGINT)
	watching.wantCode(0)
	c.start("create", "other").wantCode(0)
	other := c.start("shares", "other")
	other.wantCode(1)
	if !strings.Contains(other.stderr.String(), "other is not a group that can be read") {
		t.Errorf("of a Lease that is no group's table: %s", other.stderr.String())
	}
}

// A Lease that somebody else holds is not the table of a group, and stays as it is.
func TestGroupNamedAsLease(t *testing.T) {
	t.Parallel()
	f := newKeyFleet(newFleet(t, controlplane.ForTest(t)))
	f.run("leader", nil, f.asAdmin())
	f.awaitLeader("leader")
	want := f.ns + "/" + lease + ": the Lease exists and is not the table of a group"
	opts := f.groupOptions("member", leasehold.WithLease(lease))
	err := leasehold.Spread(t.Context(), leasehold.Keys("a"), func(leasehold.Session, string) error {
		t.Error("work began")
		return nil
	}, opts...)
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("Spread: %v", err)
	}
	r, err := leasehold.Join(t.Context(), 4, opts...)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Wait(); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("Wait: %v", err)
	}
	if l := f.get(); *l.Spec.HolderIdentity != "leader" || l.Labels[groupLabel] != "" || f.sessions.Load() != 1 {
		t.Errorf("the Lease is now %v, in session %d", l, f.sessions.Load())
	}
}

// A member needs six rights. Where one is missing the log names the rule; who may not watch polls, and who may not list
// works but does not assign.
func TestGroupRights(t *testing.T) {
	t.Parallel()
	all := []string{"get", "list", "watch", "create", "patch", "delete"}
	for _, missing := range append(all, "") {
		t.Run("without "+missing, func(t *testing.T) {
			t.Parallel()
			f := newKeyFleet(newFleet(t, controlplane.ForTest(t)))
			user := "member-in-" + f.ns
			f.grant(user, slices.DeleteFunc(slices.Clone(all), func(verb string) bool { return verb == missing }))
			limited := leasehold.WithRESTConfig(f.server.UserConfig(user))
			rule := fmt.Sprintf(`a Role in namespace \"%s\" needs the rule {apiGroups: [\"coordination.k8s.io\"], `+
				`resources: [\"leases\"], verbs: [\"%s\"]}`, f.ns, missing)
			told := func() bool { return strings.Contains(f.log.String(), rule) }
			switch missing {
			case "":
				f.spread("limited", keys(4), limited)
				f.awaitShape("map[limited:4]")
				f.spread("other", keys(4), limited).quit()
				if s := f.log.String(); strings.Contains(s, "needs the rule") {
					t.Error("a right is missing")
				}
			case "watch":
				f.spread("limited", keys(4), limited)
				f.awaitShape("map[limited:4]")
				f.await("told", told)
				full := f.spread("full", keys(4))
				f.awaitShape("map[full:2 limited:2]")
				full.quit()
				f.awaitShape("map[limited:4]")
			case "list":
				full := f.spread("full", keys(4))
				f.awaitShape("map[full:4]")
				f.spread("limited", keys(4), limited)
				f.awaitShape("map[full:2 limited:2]")
				f.await("told", told)
				full.quit()
				f.awaitShape("map[limited:2]")
				f.spread("another", keys(4))
				f.awaitShape("map[another:2 limited:2]")
			case "delete":
				full := f.spread("full", keys(4))
				f.awaitShape("map[full:4]")
				f.spread("limited", keys(4), limited)
				f.awaitShape("map[full:2 limited:2]")
				full.quit()
				f.awaitShape("map[limited:4]")
				f.await("told", told)
			default:
				full := f.spread("full", keys(4))
				f.awaitShape("map[full:4]")
				f.spread("limited", keys(4), limited)
				f.await("told", told)
				full.quit()
			}
		})
	}
}

// grant gives a user the right to some verbs on the Leases of the namespace.
func (f *keyFleet) grant(user string, verbs []string) {
	f.Helper()
	rbac, err := rbacv1client.NewForConfig(f.server.Config())
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(rbac.RESTClient().(*rest.RESTClient).Client.CloseIdleConnections)
	_, err = rbac.Roles(f.ns).Create(f.Context(), &rbacv1.Role{
		ObjectMeta: metav1.ObjectMeta{Name: "member"},
		Rules: []rbacv1.PolicyRule{{
			APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}, Verbs: verbs,
		}},
	}, metav1.CreateOptions{})
	_, errBinding := rbac.RoleBindings(f.ns).Create(f.Context(), &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "member"},
		Subjects:   []rbacv1.Subject{{Kind: "User", APIGroup: "rbac.authorization.k8s.io", Name: user}},
		RoleRef:    rbacv1.RoleRef{Kind: "Role", APIGroup: "rbac.authorization.k8s.io", Name: "member"},
	}, metav1.CreateOptions{})
	if err := errors.Join(err, errBinding); err != nil {
		f.Fatal(err)
	}
	time.Sleep(time.Second) // for the server to know of the role
}
