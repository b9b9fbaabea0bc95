package org.heliumonnx;

import java.util.HashSet;
import java.util.Set;
import org.junit.runner.Description;
import org.junit.runner.JUnitCore;
import org.junit.runner.notification.Failure;
import org.junit.runner.notification.RunListener;

/** Runs the test classes that are named. A line for each test, "ok", "skipped" or "FAILED"; the last line counts. */
public final class RunTests {
    private RunTests() {}

    private static final class Lines extends RunListener {
        private final Set<Description> notPassed = new HashSet<>();
        private int passed;
        private int failed;
        private int skipped;

        @Override
        public void testFailure(Failure failure) {
            ++failed;
            notPassed.add(failure.getDescription());
            System.out.println("FAILED   " + name(failure.getDescription()));
            System.out.println(failure.getTrimmedTrace().trim().replaceAll("(?m)^", "         "));
        }

        @Override
        public void testAssumptionFailure(Failure failure) {
            ++skipped;
            notPassed.add(failure.getDescription());
            System.out.println("skipped  " + name(failure.getDescription()) + ": " + failure.getMessage());
        }

        @Override
        public void testFinished(Description test) {
            if (notPassed.contains(test)) return;
            ++passed;
            System.out.println("ok       " + name(test));
        }

        private static String name(Description test) {
            return test.getDisplayName().replaceAll("(.*)\\((?:.*\\.)?(.*)\\)", "$2.$1");
        }
    }

    public static void main(String[] classes) throws ClassNotFoundException {
        Class<?>[] tests = new Class<?>[classes.length];
        for (int i = 0; i < classes.length; ++i) tests[i] = Class.forName(classes[i]);
        Lines lines = new Lines();
        JUnitCore core = new JUnitCore();
        core.addListener(lines);
        core.run(tests);
        System.out.println("counted: " + lines.passed + " " + lines.failed + " " + lines.skipped);
        System.exit(lines.failed == 0 ? 0 : 1);
    }
}
