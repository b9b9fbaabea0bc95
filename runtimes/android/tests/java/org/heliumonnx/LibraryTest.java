package org.heliumonnx;

import static org.junit.Assert.assertTrue;

import java.lang.reflect.InvocationTargetException;
import java.net.URL;
import java.net.URLClassLoader;
import org.junit.Test;

/** A JNI library that cannot be loaded: classes of their own loader, since this one has loaded it. */
public class LibraryTest {
    private static String messageWith(String library) throws Exception {
        String property = "org.heliumonnx.library";
        String before = System.getProperty(property);
        URL classes = HeliumModel.class.getProtectionDomain().getCodeSource().getLocation();
        try (URLClassLoader loader = new URLClassLoader(new URL[] {classes}, null)) {
            if (library == null) System.clearProperty(property);
            else System.setProperty(property, library);
            Class<?> model = Class.forName("org.heliumonnx.HeliumModel", true, loader);
            InvocationTargetException error = Fixture.assertThrown(
                    InvocationTargetException.class, () -> model.getMethod("libraryVersion").invoke(null));
            assertTrue(error.getCause() instanceof UnsatisfiedLinkError);
            return error.getCause().getMessage();
        } finally {
            System.setProperty(property, before);
        }
    }

    @Test
    public void errorsNameFoundExpectedAndRemedy() throws Exception {
        for (String library : new String[] {null, "/nowhere/libhelium_onnx_jni.so", "relative.so"}) {
            String message = messageWith(library);
            assertTrue(message, message.startsWith("the JNI library cannot be loaded: found "));
            assertTrue(message, message.contains("; expected ") && message.contains("org.heliumonnx.library"));
        }
    }
}
