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
			"namespaces: ["+c.ns+"]").Replace(string(doc))
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
		if u.GetKind() == "FlowSchema" {
			u.SetName(u.GetName() + "-" + c.ns)
			c.Cleanup(func() { resources.Delete(c.Context(), u.GetName(), metav1.DeleteOptions{}) })
		} else {
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

// asPod starts the tool as the service account of the manifests.
func (c *cli) asPod(args ...string) *call {
	c.Helper()
	if c.podConfig == "" { // once: another process may be reading it
		var err error
		c.podConfig, err = c.server.UserKubeconfig("system:serviceaccount:"+c.ns+":reconciler",
			"system:serviceaccounts", "system:serviceaccounts:"+c.ns)
		if err != nil {
			c.Fatal(err)
		}
	}
	cmd := c.command(args...)
	cmd.Env = append(cmd.Env, "KUBECONFIG="+c.podConfig)
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
	without := func(verb string) func(*unstructured.Unstructured) {
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
		c.apply("rbac.yaml", without("watch"))
		takeTurns(c, needs("watch", named))
	})
	t.Run("no create: the Lease must be there", func(t *testing.T) {
		t.Parallel()
		c := newCLI(t)
		c.apply("rbac.yaml", without("create"))
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
		c.apply("rbac.yaml", without("patch"))
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
		c.apply("rbac.yaml", without("get"))
		a := c.asPod("run", "reconciler", "--", "touch", "ran")
		c.await("told", func() bool { return strings.Contains(a.stderr.String(), needs("get", named)) })
		a.signal(syscall.SIGTERM)
		a.wantCode(143)
	})
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
	objects := c.apply("run.yaml", nil)
	var d appsv1.Deployment
	text, err := objects[0].MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	container := d.Spec.Template.Spec.Containers[0]
	if container.Command[0] != "leasehold" || container.Command[len(container.Command)-1] != "--" {
		t.Fatalf("command %q", container.Command)
	}
	if grace := *d.Spec.Template.Spec.TerminationGracePeriodSeconds; grace <= 25 ||
		!slices.Contains(container.Command, "--grace-period=25s") {
		t.Errorf("a pod has %d s to end, and %q", grace, container.Command)
	}
	args := slices.Clone(container.Command[1:])
	for i, arg := range args {
		if strings.HasPrefix(arg, "--listen=") {
			args[i] = "--listen=127.0.0.1:0" // these replicas share a network
		}
	}
	// A short failover after the crash.
	args = slices.Insert(args, len(args)-1, "--duration=2s")
	var replicas []*call
	for range *d.Spec.Replicas {
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
