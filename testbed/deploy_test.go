package testbed_test

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	rbacv1client "k8s.io/client-go/kubernetes/typed/rbac/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"
)

const deploy = "../deploy"

// kinds maps the kinds of the manifests to their resources.
var kinds = map[string]schema.GroupVersionResource{
	"Namespace":           {Version: "v1", Resource: "namespaces"},
	"ServiceAccount":      {Version: "v1", Resource: "serviceaccounts"},
	"Role":                {Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "roles"},
	"RoleBinding":         {Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "rolebindings"},
	"Lease":               {Group: "coordination.k8s.io", Version: "v1", Resource: "leases"},
	"Deployment":          {Group: "apps", Version: "v1", Resource: "deployments"},
	"FlowSchema":          {Group: "flowcontrol.apiserver.k8s.io", Version: "v1", Resource: "flowschemas"},
	"PodDisruptionBudget": {Group: "policy", Version: "v1", Resource: "poddisruptionbudgets"},
}

// apply applies a manifest after edit, as kubectl apply --server-side does, in the test's namespace instead of its own.
// It returns the objects as the API server has them.
func (c *cli) apply(name string, edit func(*unstructured.Unstructured)) []*unstructured.Unstructured {
	c.Helper()
	text, err := os.ReadFile(filepath.Join(deploy, name))
	if err != nil {
		c.Fatal(err)
	}
	client, err := dynamic.NewForConfig(c.server.Config())
	if err != nil {
		c.Fatal(err)
	}
	var applied []*unstructured.Unstructured
	for _, doc := range bytes.Split(text, []byte("\n---\n")) {
		here := strings.NewReplacer("namespace: default", "namespace: "+c.ns, "namespaces: [default]",
			"namespaces: ["+c.ns+"]", "namespace: importers", "namespace: "+c.ns).Replace(string(doc))
		var u unstructured.Unstructured
		if err := yaml.UnmarshalStrict([]byte(here), &u.Object); err != nil {
			c.Fatalf("%s: %v", name, err)
		}
		if edit != nil {
			edit(&u)
		}
		kind, ok := kinds[u.GetKind()]
		if !ok {
			c.Fatalf("%s: %s is not expected", name, u.GetKind())
		}
		var resources dynamic.ResourceInterface = client.Resource(kind)
		switch u.GetKind() {
		case "FlowSchema":
			u.SetName(u.GetName() + "-" + c.ns)
			c.Cleanup(func() { resources.Delete(c.Context(), u.GetName(), metav1.DeleteOptions{}) })
		case "Namespace":
			u.SetName(c.ns)
		default:
			if u.GetNamespace() != c.ns {
				c.Errorf("%s: %s %s is in namespace %q", name, u.GetKind(), u.GetName(), u.GetNamespace())
			}
			resources = client.Resource(kind).Namespace(c.ns)
		}
		body, err := u.MarshalJSON()
		if err != nil {
			c.Fatal(err)
		}
		result, err := resources.Patch(c.Context(), u.GetName(), types.ApplyPatchType, body,
			metav1.PatchOptions{FieldManager: "kubectl", FieldValidation: metav1.FieldValidationStrict})
		if err != nil {
			c.Fatalf("%s: %s %s: %v", name, u.GetKind(), u.GetName(), err)
		}
		applied = append(applied, result)
	}
	return applied
}

// asPod starts the tool as the service account of rbac.yaml.
func (c *cli) asPod(args ...string) *call { return c.as("reconciler", args...) }

// as starts the tool as a service account of the manifests.
func (c *cli) as(account string, args ...string) *call {
	c.Helper()
	if c.podConfigs[account] == "" { // once: another process may be reading it
		config, err := c.server.UserKubeconfig("system:serviceaccount:"+c.ns+":"+account,
			"system:serviceaccounts", "system:serviceaccounts:"+c.ns)
		if err != nil {
			c.Fatal(err)
		}
		c.podConfigs[account] = config
	}
	cmd := c.command(args...)
	cmd.Env = append(cmd.Env, "KUBECONFIG="+c.podConfigs[account])
	return c.startCmd(cmd)
}

// The API server accepts every manifest, more than once. When the folder is applied, no manifest overwrites another,
// and the pods of one Deployment are not selected by another.
func TestManifests(t *testing.T) {
	c := newCLI(t)
	files, err := filepath.Glob(filepath.Join(deploy, "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatal("no manifests: ", err)
	}
	from := map[string]string{} // file by object
	selectors := map[string]labels.Selector{}
	pods := map[string]labels.Set{}
	for round := range 2 {
		for _, file := range files {
			for _, u := range c.apply(filepath.Base(file), nil) {
				object := u.GetKind() + " " + u.GetName()
				if other, taken := from[object]; taken && round == 0 {
					t.Errorf("%s and %s both define %s", other, file, object)
				}
				from[object] = file
				if u.GetKind() == "Deployment" {
					selector, _, _ := unstructured.NestedStringMap(u.Object, "spec", "selector", "matchLabels")
					selectors[object] = labels.SelectorFromSet(selector)
					pods[object], _, _ = unstructured.NestedStringMap(u.Object, "spec", "template", "metadata",
						"labels")
				}
			}
		}
	}
	for object, selector := range selectors {
		for other, set := range pods {
			if matches := selector.Matches(set); matches != (object == other) {
				t.Errorf("%s selects the pods of %s: %v", object, other, matches)
			}
		}
	}
}

// The Role of rbac.yaml is enough, and the file describes correctly the effect of each missing verb.
func TestRoleIsMinimal(t *testing.T) {
	t.Parallel()
	needs := func(verb, names string) string {
		return fmt.Sprintf(`needs the rule {apiGroups: [\"coordination.k8s.io\"], resources: [\"leases\"],%s verbs: `+
			`[\"%s\"]}`, names, verb)
	}
	const named = ` resourceNames: [\"reconciler\"],`

	t.Run("everything", func(t *testing.T) {
		t.Parallel()
		c := newCLI(t)
		c.apply("rbac.yaml", nil)
		takeTurns(c, "")
	})
	t.Run("no watch: it is polled", func(t *testing.T) {
		t.Parallel()
		c := newCLI(t)
		c.apply("rbac.yaml", without(t, "watch"))
		takeTurns(c, needs("watch", named))
	})
	t.Run("no create: the Lease must be there", func(t *testing.T) {
		t.Parallel()
		c := newCLI(t)
		c.apply("rbac.yaml", without(t, "create"))
		a := c.asPod("run", "reconciler", "--", "true")
		c.await("told", func() bool { return strings.Contains(a.stderr.String(), needs("create", "")) })
		a.signal(syscall.SIGTERM)
		a.wantCode(143)
		a = c.asPod("run", "reconciler", "--create=never", "--", "true")
		a.wantCode(125)
		if said := a.stderr.String(); !strings.Contains(said, "lease not found: "+c.ns+"/reconciler") {
			t.Errorf("it said %s", said)
		}
		c.apply("lease.yaml", nil)
		c.asPod("run", "reconciler", "--create=never", "--", "true").wantCode(0)
		takeTurns(c, "")
	})
	t.Run("no patch: it cannot be taken", func(t *testing.T) {
		t.Parallel()
		c := newCLI(t)
		c.apply("rbac.yaml", without(t, "patch"))
		c.apply("lease.yaml", nil)
		a := c.asPod("run", "reconciler", "--", "touch", "ran")
		c.await("told", func() bool { return strings.Contains(a.stderr.String(), needs("patch", named)) })
		a.signal(syscall.SIGTERM)
		a.wantCode(143)
		if _, err := os.Stat(filepath.Join(c.dir, "ran")); err == nil {
			t.Error("the command was run")
		}
	})
	t.Run("no get: nothing works", func(t *testing.T) {
		t.Parallel()
		c := newCLI(t)
		c.apply("rbac.yaml", without(t, "get"))
		a := c.asPod("run", "reconciler", "--", "touch", "ran")
		c.await("told", func() bool { return strings.Contains(a.stderr.String(), needs("get", named)) })
		a.signal(syscall.SIGTERM)
		a.wantCode(143)
	})
}

// without returns an edit that takes a verb from the Role.
func without(t *testing.T, verb string) func(*unstructured.Unstructured) {
	return func(u *unstructured.Unstructured) {
		if u.GetKind() != "Role" {
			return
		}
		rules, _, _ := unstructured.NestedSlice(u.Object, "rules")
		var left []any
		for _, rule := range rules {
			r := rule.(map[string]any)
			verbs := slices.DeleteFunc(slices.Clone(r["verbs"].([]any)), func(v any) bool { return v == verb })
			if len(verbs) > 0 {
				r["verbs"] = verbs
				left = append(left, r)
			}
		}
		if err := unstructured.SetNestedSlice(u.Object, left, "rules"); err != nil {
			t.Fatal(err)
		}
	}
}

// takeTurns runs candidates that acquire the lease one after the other, after a release and after a crash. No request
// may be refused, except for the right that the log names.
func takeTurns(c *cli, need string) {
	c.Helper()
	one := c.asPod("run", "reconciler", "--duration=3s", "--identity=one", "--", "sh", "-c",
		say("one")+"exec sleep 600")
	c.pid("one")
	two := c.asPod("run", "reconciler", "--duration=3s", "--identity=two", "--", "sh", "-c",
		say("two")+"exec sleep 600")
	if need != "" {
		c.await("told "+need, func() bool { return strings.Contains(two.stderr.String(), need) })
	}
	one.signal(syscall.SIGTERM)
	one.wantCode(143)
	c.pid("two")
	three := c.asPod("run", "reconciler", "--duration=3s", "--identity=three", "--", "sh", "-c",
		say("three")+"exec sleep 1")
	two.signal(syscall.SIGKILL)
	two.wantCode(-1)
	three.wantCode(0)
	if h := c.holder("reconciler"); h != "" {
		c.Errorf("afterwards held by %q", h)
	}
	for _, a := range []*call{one, two, three} {
		for line := range strings.Lines(a.stderr.String()) {
			// A Role takes effect a moment after its creation.
			if strings.Contains(line, "forbidden") && a != one && (need == "" || !strings.Contains(line, need)) {
				c.Errorf("refused: %s", line)
			}
		}
	}
}

// The replicas of run.yaml, with their command, service account and environment: one works, and after its crash
// another.
func TestRunDeployment(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	c.apply("rbac.yaml", nil)
	count, args := c.replicas("run.yaml", "--duration=2s") // a short failover after the crash
	var replicas []*call
	for range count {
		replicas = append(replicas, c.asPod(append(slices.Clone(args), "sh", "-c", say("leader")+"exec sleep 600")...))
	}
	pid := c.pid("leader")
	leader := -1
	c.await("logged", func() bool {
		leader = slices.IndexFunc(replicas, func(a *call) bool {
			return strings.Contains(a.stderr.String(), `"msg":"command started"`)
		})
		return leader >= 0
	})
	replicas[leader].signal(syscall.SIGKILL)
	replicas[leader].wantCode(-1)
	c.await("led by another", func() bool { return c.pid("leader") != pid })
	if alive(pid) {
		t.Error("two programs run")
	}
	for i, a := range replicas {
		if i != leader {
			a.heeds()
			a.signal(syscall.SIGTERM)
			a.wantCode(143)
		}
	}
}

// replicas applies a Deployment that runs the tool. It returns how many replicas there are, and their arguments up to
// "--", with more.
func (c *cli) replicas(manifest string, more ...string) (count int32, args []string) {
	c.Helper()
	text, err := c.apply(manifest, nil)[0].MarshalJSON()
	if err != nil {
		c.Fatal(err)
	}
	var d appsv1.Deployment
	if err := yaml.Unmarshal(text, &d); err != nil {
		c.Fatal(err)
	}
	container := d.Spec.Template.Spec.Containers[0]
	if container.Command[0] != "leasehold" || container.Command[len(container.Command)-1] != "--" {
		c.Fatalf("command %q", container.Command)
	}
	if grace := *d.Spec.Template.Spec.TerminationGracePeriodSeconds; grace <= 25 ||
		!slices.Contains(container.Command, "--grace-period=25s") {
		c.Errorf("a pod has %d s to end, and %q", grace, container.Command)
	}
	args = slices.Clone(container.Command[1:])
	for i, arg := range args {
		if strings.HasPrefix(arg, "--listen=") {
			args[i] = "--listen=127.0.0.1:0" // these replicas share a network
		}
	}
	return *d.Spec.Replicas, slices.Insert(args, len(args)-1, more...)
}

// The replicas of spread.yaml, with their command and service account: each key runs in one of them, and those of one
// that crashed in the others.
func TestSpreadDeployment(t *testing.T) {
	t.Parallel()
	c := newCLI(t)
	c.apply("group.yaml", nil)
	count, args := c.replicas("spread.yaml", "--duration=3s")
	members := []string{"x", "y", "z"}
	if int(count) != len(members) {
		t.Fatalf("%d replicas", count)
	}
	replicas := map[string]*call{}
	for _, member := range members {
		with := slices.Insert(slices.Clone(args), len(args)-1, "-i", member)
		replicas[member] = c.as("importers", append(with, "sh", "-c", alone+"exec sleep 600 9>&-")...)
	}
	running := func() (keys int) {
		for _, member := range members {
			keys += c.running(member)
		}
		return keys
	}
	c.await("4 keys, at all members", func() bool {
		return running() == 4 && c.running("x") > 0 && c.running("y") > 0 && c.running("z") > 0
	})
	replicas["y"].signal(syscall.SIGKILL)
	replicas["y"].wantCode(-1)
	c.await("4 keys at x and z", func() bool { return running() == 4 && c.running("y") == 0 })
	for _, member := range []string{"x", "z"} {
		replicas[member].signal(syscall.SIGTERM)
		replicas[member].wantCode(0)
		c.wantNoneForbidden(replicas[member])
	}
	if n := running(); n != 0 {
		t.Errorf("%d commands still run", n)
	}
	c.wantTokens()
}

// wantNoneForbidden checks that no request was refused.
func (c *cli) wantNoneForbidden(a *call) {
	c.Helper()
	for line := range strings.Lines(a.stderr.String()) {
		if strings.Contains(line, "forbidden") {
			c.Errorf("refused: %s", line)
		}
	}
}

// The Role of group.yaml is minimal: the file describes correctly the effect of each missing verb.
func TestGroupRoleIsMinimal(t *testing.T) {
	t.Parallel()
	named := func(verb string) string {
		return fmt.Sprintf(`needs the rule {apiGroups: [\"coordination.k8s.io\"], resources: [\"leases\"], verbs: `+
			`[\"%s\"]}`, verb)
	}
	start := func(c *cli, member string) *call {
		return c.as("importers", "spread", "importers", "--keys=a,b,c,d", "--duration=3s", "-i", member, "--",
			"sh", "-c", alone+"exec sleep 600 9>&-")
	}
	told := func(c *cli, a *call, verb string) {
		c.Helper()
		c.await("told "+verb, func() bool { return strings.Contains(a.stderr.String(), named(verb)) })
	}
	for _, verb := range []string{"get", "create", "patch"} {
		t.Run("no "+verb+": it cannot take part", func(t *testing.T) {
			t.Parallel()
			c := newCLI(t)
			c.apply("group.yaml", without(t, verb))
			x := start(c, "x")
			told(c, x, verb)
			x.signal(syscall.SIGTERM)
			x.wantCode(0)
			if n := c.running("x"); n > 0 || c.file("overlaps") != "" {
				t.Errorf("%d commands ran", n)
			}
		})
	}
	t.Run("no list: it works, and never assigns", func(t *testing.T) {
		t.Parallel()
		c := newCLI(t)
		c.apply("group.yaml", without(t, "list"))
		x := start(c, "x")
		told(c, x, "list")
		admin := c.start("spread", "importers", "--keys=a,b,c,d", "--duration=3s", "-i", "admin", "--", "sh", "-c",
			alone+"exec sleep 600 9>&-")
		c.awaitRunning(2, "x")
		c.awaitRunning(2, "admin")
		for _, a := range []*call{x, admin} {
			a.signal(syscall.SIGTERM)
			a.wantCode(0)
		}
	})
	t.Run("no watch: it is polled", func(t *testing.T) {
		t.Parallel()
		c := newCLI(t)
		c.apply("group.yaml", without(t, "watch"))
		x := start(c, "x")
		told(c, x, "watch")
		c.awaitRunning(4, "x")
		y := start(c, "y")
		c.awaitRunning(2, "y")
		x.signal(syscall.SIGTERM)
		x.wantCode(0)
		c.awaitRunning(4, "y")
		y.signal(syscall.SIGTERM)
		y.wantCode(0)
	})
	for verb, want := range map[string]bool{"delete": true, "nothing": false} {
		t.Run("no "+verb+": Leases of former members stay", func(t *testing.T) {
			t.Parallel()
			c := newCLI(t)
			c.apply("group.yaml", without(t, verb))
			x := start(c, "x")
			c.awaitRunning(4, "x")
			former := c.member("x")
			y := start(c, "y")
			c.awaitRunning(2, "y")
			x.signal(syscall.SIGTERM)
			x.wantCode(0)
			c.awaitRunning(4, "y")
			if want {
				told(c, y, verb)
			} else {
				c.await("deleted", func() bool { return !c.leaseExists(former) })
				c.wantNoneForbidden(y)
			}
			if got := c.leaseExists(former); got != want {
				t.Errorf("the Lease %s is there: %v", former, got)
			}
			y.signal(syscall.SIGTERM)
			y.wantCode(0)
		})
	}
}

// member returns the name of the Lease of a member.
func (c *cli) member(identity string) (name string) {
	c.Helper()
	leases, err := c.admin.List(c.Context(), metav1.ListOptions{})
	if err != nil {
		c.Fatal(err)
	}
	for _, l := range leases.Items {
		if h := l.Spec.HolderIdentity; h != nil && *h == identity {
			return l.Name
		}
	}
	c.Fatalf("%s has no Lease", identity)
	return ""
}

// leaseExists reports whether there is a Lease.
func (c *cli) leaseExists(name string) bool {
	_, err := c.admin.Get(c.Context(), name, metav1.GetOptions{})
	return err == nil
}

// The FlowSchema of flowschema.yaml matches the workload's requests for Leases, and no others.
func TestFlowSchema(t *testing.T) {
	c := newCLI(t)
	c.apply("rbac.yaml", nil)
	schema := c.apply("flowschema.yaml", nil)[0]
	client, err := dynamic.NewForConfig(c.server.Config())
	if err != nil {
		t.Fatal(err)
	}
	level, err := client.Resource(kinds["FlowSchema"].GroupVersion().WithResource("prioritylevelconfigurations")).Get(
		t.Context(), "leader-election", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	cfg := c.server.UserConfig("system:serviceaccount:"+c.ns+":reconciler", "system:serviceaccounts",
		"system:serviceaccounts:"+c.ns)
	seen := &headers{}
	cfg.Wrap(func(next http.RoundTripper) http.RoundTripper { seen.next = next; return seen })
	as, err := dynamic.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	get := func(kind string) (flowSchema, priorityLevel string) {
		// only the response's header matters
		as.Resource(kinds[kind]).Namespace(c.ns).Get(t.Context(), "reconciler", metav1.GetOptions{})
		return seen.get("X-Kubernetes-Pf-Flowschema-Uid"), seen.get("X-Kubernetes-Pf-Prioritylevel-Uid")
	}
	c.await("decided by the FlowSchema", func() bool {
		flowSchema, priorityLevel := get("Lease")
		return flowSchema == string(schema.GetUID()) && priorityLevel == string(level.GetUID())
	})
	if flowSchema, _ := get("ServiceAccount"); flowSchema == string(schema.GetUID()) {
		t.Error("it decides about other requests too")
	}
}

// headers keeps the headers of the last response.
type headers struct {
	next http.RoundTripper
	mu   sync.Mutex
	last http.Header
}

func (h *headers) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := h.next.RoundTrip(req)
	if err == nil {
		h.mu.Lock()
		h.last = resp.Header
		h.mu.Unlock()
	}
	return resp, err
}

func (h *headers) get(name string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.last.Get(name)
}

// grant gives a user verbs on the Lease "job".
func grant(f *fleet, user string, verbs ...string) {
	f.Helper()
	rbac, err := rbacv1client.NewForConfig(f.server.Config())
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(rbac.RESTClient().(*rest.RESTClient).Client.CloseIdleConnections)
	role := &rbacv1.Role{
		ObjectMeta: metav1.ObjectMeta{Name: user},
		Rules: []rbacv1.PolicyRule{{APIGroups: []string{coordinationv1.GroupName}, Resources: []string{"leases"},
			ResourceNames: []string{"job"}, Verbs: verbs}},
	}
	if _, err := rbac.Roles(f.ns).Create(f.Context(), role, metav1.CreateOptions{}); err != nil {
		f.Fatal(err)
	}
	binding := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: user},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: user}},
		RoleRef:    rbacv1.RoleRef{Kind: "Role", APIGroup: rbacv1.GroupName, Name: user},
	}
	if _, err := rbac.RoleBindings(f.ns).Create(f.Context(), binding, metav1.CreateOptions{}); err != nil {
		f.Fatal(err)
	}
}

// The tool works as a plugin of kubectl, which finds it by its name.
func TestPlugin(t *testing.T) {
	c := newCLI(t)
	plugin := filepath.Join(c.dir, "kubectl-leasehold")
	if err := os.Symlink(built.path, plugin); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(plugin, "-n", c.ns, "get", "nothing")
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.server.Kubeconfig())
	out, _ := cmd.CombinedOutput()
	if got := string(out); cmd.ProcessState.ExitCode() != 1 || got != "error: no lease "+c.ns+"/nothing\n" {
		t.Errorf("exit code %d: %s", cmd.ProcessState.ExitCode(), got)
	}
	out, _ = exec.Command(plugin, "explain", "--bogus").CombinedOutput()
	if got := string(out); !strings.Contains(got, `see "kubectl leasehold explain --help"`) {
		t.Errorf("it said %s", got)
	}
}
